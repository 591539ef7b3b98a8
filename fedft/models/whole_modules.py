"""Modules that are trained and saved whole, beside adapters: a classifier's head, and `[model] modules_to_save`."""

from collections.abc import Collection, Sequence

from fedft import check
from fedft.errors import DataError
from fedft.models import tasks
from fedft.models.load import Base, lacking
from fedft.models.parameters import shared_names


def whole_modules(base: Base, wanted: Sequence[str]) -> frozenset[str]:
    """Paths of the modules that are trained whole; none is inside another.

    Args:
        base: the loaded model. A classifier's head is always among them, see `head_modules`.
        wanted: names, or endings of names at a dot, of modules with parameters: "lm_head", "embed_tokens", "norm".
    Raises:
        DataError: one that names no such module; one that shares a weight with a module that is not named, from which
            peft would untie it; weights that are not floats, or have more than two dimensions; as `head_modules` does.
    """
    found = head_modules(base)
    own = {n: m for n, m in base.model.named_modules(remove_duplicate=False) if any(True for _ in m.parameters())}
    for ending in wanted:
        if not (here := {n for n in own if n and f".{n}".endswith(f".{ending}")}):
            known = {n.split(".")[-1] for n in own if n}
            raise DataError(
                f"[model] modules_to_save: no module with weights ends in {ending!r}{check.nearest(ending, known)}; "
                f"this model has {', '.join(sorted(n for n in own if n.count('.') < 2 and n))}"
            )
        found |= here
    found = {n for n in found if not inside(n, found - {n})}
    _check_tied(base, found)
    _check_names(own, found)
    return frozenset(found)


def head_modules(base: Base) -> set[str]:
    """Modules of a classifier that are trained and saved whole, by their paths; none of a model that writes text.

    Those beside the pre-trained body; and of the body what the checkpoint has no weights of, as a pooler is.
    Raises DataError where that is a part of a layer or an embedding: they would be random numbers.
    """
    if tasks.of(base.task).generates:
        return set()
    children = base.model.named_children()
    beside = {n for n, m in children if n != base.model.base_model_prefix and any(True for _ in m.parameters())}
    within = {n for n in base.drawn if not inside(n, beside)}
    if lost := [n for n in within if "pooler" not in n]:
        raise lacking(base.source, base.model.config.model_type, lost)
    return beside | {n[: n.index("pooler") + len("pooler")] for n in within}


def inside(name: str, modules: Collection[str]) -> bool:
    """Whether a name of a module or a parameter is one of the modules, or in one."""
    return any(name == m or name.startswith(f"{m}.") for m in modules)


def _check_tied(base: Base, found: Collection[str]) -> None:
    """Raise DataError where a weight is a chosen module's and another one's, too, holds no floats, or is a stack."""
    for n, p in base.model.named_parameters():
        if inside(n, found) and p.ndim > 2:  # experts, or a convolution: messages are of vectors and matrices
            raise DataError(
                f"[model] modules_to_save: {n} has {p.ndim} dimensions, and messages carry up to 2; experts get "
                f"adapters, see targets"
            )
        if inside(n, found) and not p.is_floating_point():
            raise DataError(f"[model] modules_to_save: {n} is packed into {p.dtype}, which cannot be trained")
    for of in shared_names(base.model):
        mine = [n for n in of if inside(n, found)]
        if mine and (other := [n for n in of if n not in mine]):
            both = ", ".join(f'"{n.rpartition(".")[0]}"' for n in sorted(of))
            raise DataError(
                f"[model] modules_to_save: {mine[0]} is tied to {other[0]}, and would be untied from it; to train both "
                f"as one, write modules_to_save = [{both}]"
            )


def _check_names(known: Collection[str], found: Collection[str]) -> None:
    """Raise DataError where peft, which compares the ends of names, would take another module for a chosen one."""
    for n in found:
        if others := [k for k in known if k.endswith(n) and not inside(k, found)]:
            raise DataError(f"[model] modules_to_save: peft would save {others[0]} too, whose name ends in {n!r}")
