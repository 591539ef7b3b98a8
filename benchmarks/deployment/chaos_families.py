"""The disturbances of `chaos.py` dealt over all families of strategies: each must end as its simulation does.

    python benchmarks/deployment/chaos_families.py RUN.toml --kills 25 --rounds 12 --table chaos.md

So many kills of each part (server, a site, the network) in all. What could not be done in one family, since its run was
over or the part was down already, is dealt to the next one; if there is none, to the first again. Exit code 1 if any
state differs from its simulation's, a run gets stuck, anything else is wrong, or kills are left over.
"""

import random
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from chaos import disturb
from disturbances import HOW

FAMILIES = {
    "fedit": ["strategy.name=fedit"],
    "flora: every site's factors come down": ["strategy.name=flora"],
    "fedit, int4 with feedback, delta downloads": ["strategy.name=fedit", "codec.up=int4", "codec.down=delta | int4"],
    "fedprox, ternary with feedback": ["strategy.name=fedprox", "codec.up=ternary:0.5"],
    "fedkseed: a pool of seeds, delta downloads": ["strategy.name=fedkseed", "local.steps=4"],
    "ferret: coordinates": ["strategy.name=ferret"],
    "fedsa_lora: private B": ["strategy.name=fedsa_lora"],
    "scaffold: memory at the sites": ["strategy.name=scaffold"],
    "flasc: sparse both ways": ["strategy.name=flasc"],
    "fedavg: all parameters": ["strategy.name=fedavg"],
}
COLUMNS = "family", "server", "site", "network", "rounds", "digests equal", "else wrong", "state digest"
AGAIN = 3  # times that all families are gone through, at most


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml")],
    kills: Annotated[int, typer.Option(help="Of each part, in all.")] = 25,
    rounds: Annotated[int, typer.Option(help="Of each family.")] = 12,
    seed: Annotated[int, typer.Option(help="Of what happens when.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Families whose names begin so; may be given again.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override.")] = None,
    table: Annotated[Path, typer.Option(help="File for the table.")] = Path("chaos.md"),
    patience: Annotated[float, typer.Option(help="Seconds without a new state that count as stuck.")] = 180,
) -> None:
    """Disturb one deployment of each family, and compare each with its simulation."""
    families = [name for name in FAMILIES if name.startswith(tuple(only or [""]))]
    dealt = list(HOW) * kills
    random.Random(seed).shuffle(dealt)
    lines, right, turn = [COLUMNS, ("---",) * len(COLUMNS)], True, 0
    while turn < len(families) or (dealt and turn < AGAIN * len(families)):
        name = families[turn % len(families)]
        share, dealt = _share(dealt, max(1, len(families) - turn))
        typer.echo(f"{name}: {dict(Counter(share))}")
        sets = [*FAMILIES[name], *(set_ or ()), f"server.rounds={rounds}"]
        end = disturb(None, run, sets, share, seed + turn, patience)
        typer.echo(end.line)
        done = [d["what"].split()[0] for d in end.done if not d["how"].startswith("(")]
        dealt += (Counter(share) - Counter(done)).elements()
        of = Counter(done)
        counts = (str(of["server"]), str(of["client"]), str(of["network"]))
        lines.append(
            (name, *counts, str(end.rounds), "yes" if end.equal else "NO", str(len(end.wrong)), end.digest[:16])
        )
        right = right and end.equal and not end.wrong
        turn += 1
        table.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
    typer.echo(table.read_text(encoding="utf-8"))
    raise typer.Exit(0 if right and not dealt else 1)


def _share(dealt: list[str], families: int) -> tuple[list[str], list[str]]:
    """The next family's part, and what is left for so many less one; all for the last."""
    n = -(-len(dealt) // families)
    return dealt[:n], dealt[n:]


if __name__ == "__main__":
    typer.run(main)
