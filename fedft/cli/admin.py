"""`fedft admin RUN ...`: steer a run whose server is running on this machine, through the socket in its run folder."""

import json
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from fedft.cli.options import AsJson
from fedft.errors import ConfigError

PATIENCE_S = 60.0  # for an answer: the server writes to its disk before it gives one

app = typer.Typer(
    name="admin",
    help="Steer a run whose server is running on this machine; each act is in the run's audit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name in the roster.")]


@app.callback()
def _admin(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder, as `fedft server --out` names it.")],
) -> None:
    """Steer a run whose server is running on this machine; each act is in the run's audit."""
    context.obj = run


@app.command()
def sites(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the sites of roster and run."""
    from fedft.reports.terminal import table

    rows = _asked(context.obj, {"act": "sites"})["sites"]
    if as_json:
        typer.echo(json.dumps(rows))
    elif rows:
        table(rows, [c for c in rows[0] if any(row[c] is not None for row in rows)])


@app.command()
def enrol(
    context: typer.Context,
    cards: Annotated[list[Path], typer.Argument(metavar="CARD...", help="Cards, as `fedft keys site` makes them.")],
) -> None:
    """Take sites into the roster, or back into this run, from the next round on."""
    from fedft.security.key_files import read_text
    from fedft.security.roster import MAX_CARD_BYTES

    texts = [read_text(card, "a site's operator makes one with `fedft keys site`", MAX_CARD_BYTES) for card in cards]
    for card, text in zip(cards, texts, strict=True):
        _act(context, act="enrol", card=text, file=str(card))


@app.command()
def revoke(context: typer.Context, site: Site) -> None:
    """Let a site's keys count no longer, in any run of the roster: at once, in the open round too."""
    _act(context, act="revoke", site=site)


@app.command()
def remove(context: typer.Context, site: Site) -> None:
    """Take a site out of this run, not out of the roster: at once, in the open round too."""
    _act(context, act="remove", site=site)


@app.command()
def lift(context: typer.Context, site: Site) -> None:
    """End a site's quarantine, from the next round on."""
    _act(context, act="lift", site=site)


@app.command()
def pause(context: typer.Context) -> None:
    """Let no round begin once the open one is over."""
    _act(context, act="pause")


@app.command()
def resume(context: typer.Context) -> None:
    """Let rounds begin again."""
    _act(context, act="resume")


@app.command(name="set")
def set_(
    context: typer.Context,
    keys: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...", help="server.deadline_s, quorum, grace_s, attempts, rounds; eval.*, limits.*"
        ),
    ],
) -> None:
    """Change keys of the run file: those of its server table hold at once, of eval and limits in what comes next."""
    _act(context, act="set", keys=keys)


@app.command()
def audit(
    context: typer.Context,
    lines: Annotated[int, typer.Option(min=1, help="How many lines.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the last lines of the audit, also when no server is running."""
    from fedft.server import audit as audits

    path = context.obj / audits.FILE
    if not path.exists():
        raise ConfigError(f"{path}: no such file; wanted the run folder of a server")
    for entry in audits.tail(path, lines):
        del entry["before"]
        said = " ".join(f"{k}={_plain(v)}" for k, v in entry.items() if k not in ("time", "event"))
        typer.echo(json.dumps(entry) if as_json else f"{entry['time']} {entry['event']:<11} {said}")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _act(context: typer.Context, **request: Any) -> None:
    for line in _asked(context.obj, request)["said"]:
        typer.echo(line)


def _asked(run: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The server's answer to a request. Raises ConfigError for what it refuses, and where there is no server."""
    from fedft.server.admin_socket import MAX_LINE, MAX_PATH, NAME

    data = json.dumps(request).encode() + b"\n"
    if len(data) > MAX_LINE:
        raise ConfigError(f"the request has {len(data)} bytes, at most {MAX_LINE} are read; fewer at a time")
    where = os.fsencode(run / NAME)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(PATIENCE_S)
            if len(where) > MAX_PATH:  # longer than an address may be: as seen from the folder itself
                os.chdir(run)
                where = os.fsencode(NAME)
            server.connect(where)
            server.sendall(data)
            answer = bytearray()
            while more := server.recv(2**16):
                answer += more
        found: dict[str, Any] = json.loads(answer)
    except PermissionError as e:
        raise ConfigError(f"{run / NAME}: {e.strerror}; wanted the user as whom the server runs, or root") from e
    except (OSError, ValueError) as e:
        raise ConfigError(_nobody(run)) from e
    if "error" in found:
        raise ConfigError(f"{run}: {found['error']}")
    return found


def _nobody(run: Path) -> str:
    """That no server answers, and how else each act is done."""
    return (
        f"{run}: no server is running this run here; `fedft keys enrol` and `fedft keys revoke` change its roster, "
        "`fedft server --lift SITE` and other keys in the run file hold from its next start on, `fedft status` shows "
        "the sites, and pause, resume and remove need a running server"
    )
