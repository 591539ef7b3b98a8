"""Whether something read from elsewhere is a status (`run_status`, `run_folders`): every key that is shown, each of its
type and within bounds. Further keys are let be: a newer version may have more."""

from collections.abc import Callable, Mapping
from typing import Any

Test = Callable[[Any], bool]
MOST = 2.0**53  # of a number: above it a float is no whole number any more
END_OF_TIME = 253402300799.0  # the last second of the year 9999, the last that can be written as a date


def text(x: Any) -> bool:
    """Whether it is text."""
    return isinstance(x, str)


def number(x: Any) -> bool:
    """Whether it is a number, finite and within MOST; true and false are none."""
    return isinstance(x, int | float) and not isinstance(x, bool) and -MOST <= x <= MOST


def whole(x: Any) -> bool:
    """Whether it is a whole number from 0 to MOST."""
    return isinstance(x, int) and number(x) and x >= 0


def moment(x: Any) -> bool:
    """Whether it is a time, seconds since 1970, that a calendar knows."""
    return number(x) and 0 <= x <= END_OF_TIME


def known(test: Test) -> Test:
    """Passes None, which stands for what is not known, and what passes `test`."""
    return lambda x: x is None or test(x)


def list_of(test: Test) -> Test:
    """Passes a list whose entries all pass `test`."""
    return lambda x: isinstance(x, list) and all(map(test, x))


def map_to(test: Test) -> Test:
    """Passes an object whose values all pass `test`."""
    return lambda x: isinstance(x, dict) and all(map(test, x.values()))


def having(keys: Mapping[str, Test]) -> Test:
    """Passes an object that has all these keys, each with a value that passes its test."""
    return lambda x: isinstance(x, dict) and not wrong(x, keys)


def wrong(found: Mapping[str, Any], keys: Mapping[str, Test]) -> str:
    """The first of `keys` that `found` has not, or not rightly; "" if there is none."""
    return next((name for name, test in keys.items() if name not in found or not test(found[name])), "")


SITE: dict[str, Test] = {
    "name": text, "state": text, "doing": known(text), "loss": known(number), "counted": whole, "refused": whole,
    "up": number, "down": number, "took_s": known(number), "left_s": known(number),
}  # fmt: skip


def site(x: Any) -> bool:
    """Whether it is what a status says of a site; that of a server of before says no bits."""
    return having(SITE)(x) and known(whole)(x.get("bits"))


REFUSAL: dict[str, Test] = {
    "time": known(moment), "round": known(whole), "client": text, "code": text, "reason": text,
}  # fmt: skip
STEERED: dict[str, Test] = {
    "paused": lambda x: isinstance(x, bool), "removed": list_of(text), "changed": lambda x: isinstance(x, dict),
}  # fmt: skip
RUN: dict[str, Test] = {
    "name": text, "state": text, "strategy": text, "model": text, "seed": known(number), "phase": known(text),
    "at_work": known(whole), "asked": list_of(text), "answered": list_of(text), "missing": list_of(text),
    "need": known(whole), "deadline": known(moment), "updated": known(moment), "round": whole, "rounds": whole,
    "barred": map_to(text), "loss": known(number), "first_loss": known(number), "train_loss": known(number),
    "bytes_up": number, "bytes_down": number, "seconds": number, "left_s": known(number), "disk_bytes": number,
    "disk_free": number, "memory_bytes": known(number), "adapter": lambda x: isinstance(x, bool),
    "steered": lambda x: x == {} or having(STEERED)(x), "sites": list_of(site),
    "refusals": list_of(having(REFUSAL)), "refused": map_to(whole),
}  # fmt: skip
SHORT: dict[str, Test] = {
    "name": text, "state": text, "strategy": known(text), "round": known(whole), "rounds": known(whole),
    "loss": known(number), "first_loss": known(number), "bytes_up": known(number), "bytes_down": known(number),
    "left_s": known(number),
}  # fmt: skip
PRIVACY: dict[str, Test] = {
    "mode": text, "delta": number, "epsilon_why": known(text), "rounds_left": known(whole),
}  # fmt: skip
FLOOR: dict[str, Test] = {
    "bytes_up": number, "bytes_down": number, "seconds": number, "refused": map_to(whole), "counted": map_to(whole),
}  # fmt: skip
SUMS = ("rounds", "bytes_up", "bytes_down")
"""What is known of a run among others if its round is."""


def short(x: Any) -> bool:
    """Whether it is the line of a run among others."""
    return having(SHORT)(x) and (x["round"] is None or all(x[key] is not None for key in SUMS))


def _private(found: Mapping[str, Any]) -> bool:
    """Whether what a status says of privacy can be shown; that of a server of before says nothing."""
    said = found.get("privacy")
    return said is None or (having(PRIVACY)(said) and known(number)(found.get("epsilon", "")))


MANY: dict[str, Test] = {"name": text, "runs": list_of(short), "left_out": whole}


def fault(found: Any) -> str:
    """What is wrong with `found` as the status of a run, or of a folder of runs; "" if nothing is."""
    if not isinstance(found, dict) or "form" not in found:
        return "no status"
    if found["form"] != 1:
        return f"a status of form {found['form']!r:.20}, wanted 1"
    if "runs" in found:
        key = wrong(found, MANY)
    else:
        key = (
            wrong(found, RUN)
            or ("" if _private(found) else "privacy")
            or ("updated" if found["state"] == "silent" and found["updated"] is None else "")
        )
    return f"a status whose {key!r} is absent or not as it should be" if key else ""
