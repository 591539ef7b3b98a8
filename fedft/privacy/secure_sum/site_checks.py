"""What a site finds of a server's message before it goes on; `fedft.privacy.secure_sum.member` has the codes.

Each gives what the message says, or raises PlanRefused.
"""

from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft.errors import PlanRefused
from fedft.privacy.secure_sum import context as contexts
from fedft.privacy.secure_sum import derived_keys, messages
from fedft.privacy.secure_sum.context import Context, Spec
from fedft.privacy.secure_sum.messages import Entry, Step


def checked_opening(
    message: bytes, cards: Mapping[str, bytes], name: str, own_key: bytes, last_block: int, wanted: Spec, run: str
) -> Context:
    """The context of the block that message 1 opens, all of which the site knew before.

    Args:
        message: message 1.
        cards: the roster that people gave to the site.
        name, own_key: the site's own, and its Ed25519 public key.
        last_block: the highest block so far; -1: none.
        wanted: the vector that the job implies.
        run: the run's id.
    """
    frame = messages.read(message, Step.OPEN, PlanRefused)
    roster, t, spec = messages.read_opening(frame, PlanRefused)
    if cards.get(name) != own_key:
        raise PlanRefused("secagg_roster", f"this site's roster has no card of {name!r} with its key")
    if not contexts.FEWEST <= len(cards) <= contexts.MOST:
        raise PlanRefused("secagg_roster", f"a roster of {len(cards)}, from {contexts.FEWEST} to {contexts.MOST} do")
    if (own := contexts.roster_digest(cards)) != roster or frame.n != len(cards):
        digests = f"{roster.hex()[:16]} of {frame.n}, here {own.hex()[:16]} of {len(cards)}"
        raise PlanRefused("secagg_roster", f"the server's roster is another than this site's: {digests}")
    if t != contexts.threshold(frame.n):
        raise PlanRefused("secagg_threshold", f"t = {t} of {frame.n}, wanted {contexts.threshold(frame.n)}")
    if spec != wanted.json():
        raise PlanRefused("secagg_context", f"a sum of {spec[:200]!r}, the job implies {wanted.json()[:200]!r}")
    if frame.block <= last_block:
        raise PlanRefused("secagg_context", f"block {frame.block}, wanted one above {last_block}")
    try:
        wanted.check_fits(frame.n)
    except ValueError as e:
        raise PlanRefused("secagg_context", str(e)) from None
    return contexts.context_of(run, frame.block, cards, wanted)


def checked_book(message: bytes, context: Context, cards: Mapping[str, bytes], own: Entry) -> tuple[Entry, ...]:
    """The entries of message 3: at least t, each signed by its card, the site's own unchanged, no key twice."""
    entries = messages.read_book(messages.read(message, Step.BOOK, PlanRefused, context), PlanRefused)
    names, ctx = contexts.members(cards), context.digest
    if len(entries) < context.t:
        raise PlanRefused("secagg_threshold", f"{len(entries)} sites in the book, {context.t} are needed")
    for e in entries:
        name = names[e.index - 1]
        try:
            card = Ed25519PublicKey.from_public_bytes(cards[name])
            card.verify(e.signature, messages.signed_text(ctx, e.index, e.keys))
        except (InvalidSignature, ValueError):
            raise PlanRefused("secagg_roster", f"keys in the name of {name!r}, not signed by its card") from None
    if own not in entries:
        raise PlanRefused("secagg_context", "the book has other keys of this site, or none")
    keys = [k for e in entries for k in e.keys]
    if len(set(keys)) != len(keys):
        raise PlanRefused("secagg_context", "a key stands twice in the book")
    if any(map(derived_keys.weak, keys)):
        raise PlanRefused("secagg_context", "a key in the book is weak: all would know its secrets")
    return entries


def checked_delivery(
    message: bytes, context: Context, own: int, book: Sequence[int]
) -> tuple[tuple[int, ...], dict[int, bytes]]:
    """(indices of the dealers, the boxes of the others by index) of message 5: at least t of the book, the site too."""
    frame = messages.read(message, Step.DELIVER, PlanRefused, context)
    dealers, boxes = messages.read_delivery(frame, PlanRefused)
    if not {own} <= set(dealers) <= set(book):
        raise PlanRefused("secagg_context", "the dealers are not of the book, or this site is none of them")
    if len(dealers) < context.t:
        raise PlanRefused("secagg_threshold", f"{len(dealers)} sites dealt shares, {context.t} are needed")
    return dealers, dict(zip((j for j in dealers if j != own), boxes, strict=True))


def checked_survivors(survivors: Sequence[int], context: Context, own: int, dealers: Sequence[int]) -> None:
    """None if a slot may be opened for these survivors of message 7: at least t dealers, the site one of them."""
    if not set(survivors) <= set(dealers):
        raise PlanRefused("secagg_context", "survivors that have dealt no shares")
    if own not in survivors:
        raise PlanRefused("secagg_both_shares", "this site's vector was sent, and its key is asked for")
    if len(survivors) < context.t:
        raise PlanRefused("secagg_threshold", f"{len(survivors)} survivors, {context.t} are needed")
