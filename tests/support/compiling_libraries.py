"""Libraries that compile kernels, as parameters of tests."""

from importlib.util import find_spec

import pytest
from _pytest.mark.structures import ParameterSet


def library(name: str) -> ParameterSet:
    """The name of a library, as a parameter that is skipped where it is not installed."""
    absent = pytest.mark.skipif(
        not find_spec(name), reason=f"{name} is not installed: nothing compiles kernels with it"
    )
    return pytest.param(name, marks=absent)
