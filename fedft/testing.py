"""For tests of a strategy: the contract that each one keeps, and the toy that it is checked on.

    from fedft.testing import strategy_contract
    def test_mine(): strategy_contract(mine(beta=0.9))

What stands in `fedft.suites.strategies` and `fedft.suites.toy`, under a name that stays.
"""

from fedft.suites.strategies import PROMISES, strategy_contract
from fedft.suites.toy import CLIENTS, RUN, SEED, Ready, Toy, ToyModel, ToyTokens, data_of, inputs, toy

__all__ = [
    "CLIENTS", "PROMISES", "RUN", "SEED", "Ready", "Toy", "ToyModel", "ToyTokens", "data_of", "inputs",
    "strategy_contract", "toy",
]  # fmt: skip
