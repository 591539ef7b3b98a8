"""Every kind of adapter keeps the contract; a kind that breaks a promise is told which."""

import sys
from pathlib import Path

import pytest

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.adapters.triplet import Triplet
from fedft.arithmetic.named_pairs import B_SUFFIX
from fedft.suites.adapters import PROMISES

sys.path.append(str(Path(__file__).parents[1] / "plugin_example"))
from ia3 import IA3
from lora_xs import LoRAXS

KINDS = [LoRA(), LoRA((B_SUFFIX,)), Full(), Triplet(), IA3(), LoRAXS()]


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join([kind.name, *getattr(kind, "learns", ())]))
def test_every_kind_keeps_its_promises(kind, promise):
    PROMISES[promise](kind)
