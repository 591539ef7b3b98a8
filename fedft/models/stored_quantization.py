"""Checkpoints whose files hold packed weights (bitsandbytes, GPTQ, AWQ, FP8...): taken where their library is here.

`config.json` says the method under `quantization_config`. What is missing is said before gigabytes of weights are read.
Such weights stand still: adapters are trained on them, and changes of the base stand beside them as factors.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from fedft.errors import DataError, first_line

NEEDS: Mapping[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "eetq": ("kernels",),
    "fbgemm_fp8": ("fbgemm-gpu",),
    "gptq": ("gptqmodel", "optimum"),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
    "quark": ("quark",),
    "spqr": ("spqr-quant",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""Packages that read what a method has packed, as pip calls them. Others are transformers' own, or need a GPU."""


def method_of(config: Any) -> str:
    """How a model's weights are packed in its files, by its config, as "gptq"; "" where they are floats."""
    said = getattr(config, "quantization_config", None)
    if not said:
        return ""
    said = said if isinstance(said, Mapping) else said.to_dict()
    if said.get("load_in_4bit") or said.get("load_in_8bit"):
        return "bitsandbytes"  # a folder of before methods had names
    return str(getattr(name := said.get("quant_method"), "value", name))


def check_readable(config: Any, source: str, only_floats: str = "") -> str:
    """`method_of` the config of the model at `source`.

    Raises DataError where this machine cannot read such weights, or the run cannot use them: `only_floats` says why.
    """
    if not (method := method_of(config)):
        return ""
    packed = f"[model] id: {source!r} holds its weights packed by {method}"
    if only_floats:
        raise DataError(f"{packed}; {only_floats}")
    if missing := [name for name in NEEDS.get(method, ()) if not installed(name)]:
        raise DataError(f"{packed}, and {' and '.join(missing)} is not installed here: pip install {' '.join(missing)}")
    from transformers.quantizers import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True).validate_environment(
            device_map=None
        )
    except Exception as e:  # of many libraries, each in its own way
        raise DataError(f"{packed}: {first_line(e).rstrip('. ')}") from e
    return method


def installed(package: str) -> bool:
    """Whether a package is here, by the name that pip has for it."""
    module = {"fbgemm-gpu": "fbgemm_gpu", "optimum-quanto": "optimum.quanto"}.get(package, package.replace("-", "_"))
    try:
        return find_spec(module) is not None
    except ImportError:  # the package around it is not here
        return False
