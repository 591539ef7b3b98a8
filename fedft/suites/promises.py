"""A suite is a table of promises: sentence -> a check that raises where it is broken."""

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], None]


def kept(promises: Mapping[str, Check], value: Any, name: str, *, stop: bool) -> dict[str, str]:
    """{promise: "" or what broke it} of a value; with `stop` the first that is broken is raised as AssertionError."""
    results: dict[str, str] = {}
    for promise, check in promises.items():
        try:
            check(value)
            results[promise] = ""
        except Exception as e:
            if stop:
                raise AssertionError(f"{name}: {promise}: {type(e).__name__}: {e}") from e
            # the type always: that a check met another exception than AssertionError is itself a finding
            results[promise] = f"{type(e).__name__}: {e}".split("\n")[0]
    return results
