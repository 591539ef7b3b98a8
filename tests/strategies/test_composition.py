"""Which methods stand on which: every pair that is accepted keeps the contract, every other one says why not.

The table in STRATEGIES.md is what is found here; a test that fails prints the right one.
"""

from itertools import permutations, product
from pathlib import Path

import pytest

from fedft import run_file, testing
from fedft.errors import ConfigError
from fedft.registry import BUILT_IN
from fedft.strategies import make, of
from fedft.testing import PROMISES

DOCUMENT = Path(__file__).resolve().parents[2] / "STRATEGIES.md"
WRAPPERS = ("fedprox", "scaffold", "fedopt")
SMALL = {"fedkseed": {"K": 64}, "ferret": {"K": 64}}
RELIED_ON = (
    "same config and seed, same bytes",
    "uploads fit their spec and survive the wire",
    "a learning rate of zero leaves the model bit for bit",
    "a late joiner stands where a veteran stands, bit for bit",
    "the state survives the disk and a restart",
    "what is private never travels",
)


def made(wrapper: str, base: str):
    return make(wrapper, {"on": {"name": base, **SMALL.get(base, {})}})


def fits(wrapper: str, base: str) -> bool:
    try:
        made(wrapper, base)
    except ConfigError:
        return False
    return True


PAIRS = [pair for pair in product(WRAPPERS, BUILT_IN) if fits(*pair)]


def table() -> str:
    lines = ["| on | " + " | ".join(f"`{w}`" for w in WRAPPERS) + " |", "|---" * (len(WRAPPERS) + 1) + "|"]
    for base in BUILT_IN:
        lines.append(f"| `{base}` | " + " | ".join("yes" if fits(w, base) else "-" for w in WRAPPERS) + " |")
    return "\n".join(lines)


def test_the_document_has_the_table_of_what_composes():
    assert table() in DOCUMENT.read_text(encoding="utf-8"), f"STRATEGIES.md lacks this table:\n\n{table()}"


@pytest.mark.parametrize(("wrapper", "base"), PAIRS)
@pytest.mark.parametrize("promise", RELIED_ON[:2])
def test_what_composes_keeps_the_contract(wrapper, base, promise):
    PROMISES[promise](made(wrapper, base))


@pytest.mark.parametrize(("wrapper", "base"), sorted(set(product(WRAPPERS, BUILT_IN)) - set(PAIRS)))
def test_what_does_not_compose_says_why_in_one_line(wrapper, base):
    with pytest.raises(ConfigError, match=f"{wrapper} cannot be on {base}: ") as e:
        made(wrapper, base)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("order", list(permutations(WRAPPERS)), ids="-".join)
def test_wrappers_wrap_each_other_in_any_order(order):
    """FedProx pulls, SCAFFOLD corrects and FedOpt steps in all of them: the state has controls, the server moments."""
    first, second, third = order
    recipe = make(first, {"on": {"name": second, "on": {"name": third, "on": "ffa_lora"}}})
    for promise in RELIED_ON:
        PROMISES[promise](recipe)
    t = testing.toy(recipe)
    state = t.step(t.state(), [t.update(t.state(), k) for k in range(3)])
    assert any(n.startswith("control.") for n in state.tensors)
    assert any(n.startswith("m.") for n in state.own["fedopt"])
    assert not any(n.startswith("m.control.") for n in state.own["fedopt"])  # c has a rule of its own
    assert len(recipe.local.terms) == 2


def test_options_of_the_wrapped_method_are_heard_and_checked():
    weak, strong = (make("fedopt", {"on": {"name": "fedprox", "mu": mu}}) for mu in (0.0, 5.0))
    t, u = testing.toy(weak), testing.toy(strong)
    assert not t.update(t.state(), 0).delta.keys() ^ u.update(u.state(), 0).delta.keys()
    a, b = (toy.update(toy.state(), 0, steps=8).delta["first.lora_B"].norm() for toy in (t, u))
    assert b < 0.9 * a
    with pytest.raises(ConfigError, match=r"fedprox has no option 'proxx'.*did you mean 'prox'"):
        make("fedopt", {"on": {"name": "fedprox", "proxx": 0.1}})
    with pytest.raises(ConfigError, match="wanted a name, or a table"):
        make("fedopt", {"on": {"mu": 0.1}})


def test_a_run_file_says_towers():
    tables = {"strategy": {"name": "fedopt", "on": {"name": "scaffold", "on": {"name": "fedprox", "mu": 0.1}}}}
    recipe = of(run_file.from_dict(tables | {"local": {"optimizer": "sgd"}, "codec": {"up": "int4"}}))
    assert len(recipe.local.terms) == 2
    assert len(recipe.uploads) == 1
    config = run_file.from_dict(tables)
    assert run_file.from_dict(config.to_dict()) == config
