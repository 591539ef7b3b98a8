"""In which precision a site has a run's base: as the run says, or as the site's own file does."""

from dataclasses import replace
from typing import Literal

from fedft import strategies
from fedft.client.site_settings import SiteConfig
from fedft.config import BITS, Model, RunConfig
from fedft.errors import PlanRefused
from fedft.update import Job


def own_model(said: RunConfig, site: SiteConfig) -> Model:
    """The `[model]` table of a run with what the site's file says of it.

    Where that says `dtype` or `base_bits`, the run has no say in either. Raises PlanRefused: `policy_bits` for a
    precision that the policy does not list, `base_precision` for one of the site's own that the run does not allow.
    """
    own = {k: v for k, v in vars(site.model).items() if k not in ("dtype", "base_bits")}
    dtype, bits = site.model.dtype, site.model.base_bits
    if dtype is None and bits is None:
        if said.model.bits not in site.policy.bits:
            allowed = ", ".join(map(str, site.policy.bits))
            raise PlanRefused("policy_bits", f"{_precision(said.model)} of a base is not allowed here; bits: {allowed}")
        return replace(said.model, **own)
    here = replace(said.model, **own, dtype=dtype or said.model.dtype, base_bits=bits)
    _check(here, said)
    return here


def with_bits(m: Model, bits: int) -> Model:
    """The `[model]` table with the base in so many bits: 4 or 8 packed, 16 as bfloat16 where it was of other bits.

    >>> with_bits(Model(dtype="float16", base_bits=4), 16).dtype, with_bits(Model(dtype="float32"), 8).base_bits
    ('float16', 8)
    """
    packed: dict[int, Literal[4, 8]] = {4: 4, 8: 8}
    if bits in packed:
        return replace(m, base_bits=packed[bits])
    dtype = m.dtype if BITS.get(m.dtype) == bits else "float32" if bits == 32 else "bfloat16"
    return replace(m, dtype=dtype, base_bits=None)


def precision_of(job: Job) -> Model:
    """A `[model]` table with the precision of a run's base, as its job says."""
    said = job.table("model")
    return Model(dtype=str(said.get("dtype", "auto")), base_bits=said.get("base_bits"))


def _check(here: Model, said: RunConfig) -> None:
    """Raise PlanRefused where the site's precision is another than the run's, and may not be."""
    if (here.dtype, here.base_bits) == (said.model.dtype, said.model.base_bits):
        return
    name, unlike = said.strategy.name, f"[model] here says {_precision(here)}, the run {_precision(said.model)}"
    if strategies.make(name, said.strategy.options).bases == "same":
        raise PlanRefused("base_precision", f"{unlike}: clients of {name} must have one base; leave it out")
    if here.dtype != "float32" and (here.modules_to_save or here.task == "sequence-classification"):
        raise PlanRefused("base_precision", f"{unlike}: modules that are trained whole are in float32; leave it out")


def _precision(m: Model) -> str:
    return f"{m.dtype} in {m.base_bits} bits" if m.base_bits else m.dtype
