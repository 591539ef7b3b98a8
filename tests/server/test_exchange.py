"""What an exchange sends: never what an earlier one has made."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch

from fedft import strategies, testing
from fedft.carriers.interface import Letter
from fedft.server.exchange import Exchange
from fedft.server.sending import Came
from fedft.server.traffic import Traffic, Until
from fedft.update import Plan
from fedft.wire import messages


@dataclass
class Late(Exchange):
    """An exchange whose letters are made late, as for a client that had to be told the job first."""

    sent: list[bytes] = field(default_factory=list)
    answers: bool = False
    """Whether clients answer what they are sent."""

    def send(self, letters: list[Letter], accept: Any, *how: Any, **goes_on: bool) -> None:
        self.sent += [letter.payload() for letter in letters]
        for letter in letters if self.answers else ():
            accept(Came(letter.client, b""))


def test_a_plan_with_tensors_of_its_own_is_made_anew_in_every_exchange() -> None:
    """The client has not answered, so that it stands where it stood; its plan is another one all the same."""
    toy = testing.toy(strategies.make("fedit", {}))
    state = toy.recipe.first_state(toy.layout, 4, 0)
    config = SimpleNamespace(codec=SimpleNamespace(plans="fp32"))
    exchange = Late(SimpleNamespace(recipe=toy.recipe, config=config, virtual=False))  # type: ignore[arg-type]
    plan = Plan("0" * 16, 0, 0, rank=4, steps=1, attempt=1, tensors={"words": torch.ones(2)})
    for attempt in (1, 2):
        asked = {"a": replace(plan, attempt=attempt)}
        exchange.ask("train", asked, lambda version: state, lambda came: None, Traffic(), {"a": 9}, Until)
    assert [messages.decode_plan(sent, max_bytes=len(sent)).attempt for sent in exchange.sent] == [1, 2]


def test_who_holds_the_state_cut_to_another_shape_is_sent_it_again() -> None:
    """A round's plan may have another rank than that of the evaluation before it, as when somebody has joined."""
    toy = testing.toy(strategies.make("flexlora", {}))
    state = toy.recipe.first_state(toy.layout, 4, 0)
    config = SimpleNamespace(codec=SimpleNamespace(plans="fp32"))
    exchange = Late(SimpleNamespace(recipe=toy.recipe, config=config, virtual=False), answers=True)  # type: ignore[arg-type]
    for rank in (2, 2, 4):
        asked = {"a": Plan("0" * 16, 0, 0, rank=rank, steps=1)}
        exchange.ask("train", asked, lambda version: state, lambda came: None, Traffic(), {"a": 9}, Until)
    first, again, other = (messages.decode_plan(sent, max_bytes=len(sent)) for sent in exchange.sent)
    assert (first.have, again.have, other.have) == (None, 0, None)
    assert not again.tensors
    assert {x.shape[0] for n, x in other.tensors.items() if n.endswith("lora_A")} == {4}
