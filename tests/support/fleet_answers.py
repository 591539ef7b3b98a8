"""What the clients of a fleet answer to letters of training."""

from typing import Any

from fedft.carriers.fleet.post import FleetPost
from fedft.carriers.interface import Letter


def said(post: FleetPost, *pairs: tuple[str, str]) -> dict[str, Any]:
    """The answers by client, once all have come."""
    tickets = {post.push(Letter(c, "train", lambda t=t: t.encode(), max_bytes=2**21))[0] for c, t in pairs}  # type: ignore[misc]
    found: dict[str, Any] = {}
    while tickets:
        for reply in post.pull(tickets):
            tickets.discard(reply.ticket)
            found[reply.client] = reply.answer
    return found
