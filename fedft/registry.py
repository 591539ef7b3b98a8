"""What can be named in a run file: built in, or declared by installed packages as entry points."""

from importlib.metadata import entry_points

GROUP = "fedft.strategies"

BUILT_IN = (
    "fedavg",
    "fedex_lora",
    "fedit",
    "fedkseed",
    "fedopt",
    "fedprox",
    "fedsa_lora",
    "ferret",
    "ffa_lora",
    "flasc",
    "flexlora",
    "flora",
    "hetlora",
    "lora_fair",
    "mezo",
    "rolora",
    "scaffold",
    "zo_fedavg",
)


def installed() -> dict[str, str]:
    """Every strategy that can be named: name -> where it comes from."""
    found = {name: f"fedft.strategies.{name}:{name}" for name in BUILT_IN}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point.value)
    return dict(sorted(found.items()))
