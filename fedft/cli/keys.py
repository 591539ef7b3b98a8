"""`fedft keys`: make a server's and a site's keys, and keep the roster of sites that count."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedft.errors import ConfigError

app = typer.Typer(
    name="keys",
    help="Keys and certificates of a deployment, and the roster of sites whose messages count.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ServerFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's key folder.")]
Days = Annotated[int, typer.Option(help="Days that the certificate is valid.")]


@app.command()
def server(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; keys in it are never overwritten.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="DNS name or IP address that sites connect to; repeat it. (default: localhost, 127.0.0.1)"),
    ] = None,
    days: Days = 365,
) -> None:
    """Make the server's folder: certificate authority, TLS certificate, signing key and an empty roster."""
    from fedft.security import new_keys

    hosts = host or ["localhost", "127.0.0.1"]
    new_keys.make_server(folder, hosts, days)
    typer.echo(f"made {folder}, for sites that connect to {', '.join(hosts)}; back it up, and let nobody else read it")
    typer.echo(f"next: enrol the cards that sites send, and hand each a kit, `fedft keys kit {folder} SITE`")


@app.command()
def site(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; keys in it are never overwritten.")],
    name: Annotated[str, typer.Argument(help="The site's name, as the roster and all logs will show it.")],
) -> None:
    """Make a site's keys, and the card with their public halves for the server's operator."""
    from fedft.security import new_keys, roster

    card = new_keys.make_site(folder, name)
    typer.echo(f"made {folder}; fingerprint {roster.read_card(card).fingerprint()}")
    typer.echo(f"next: hand {card} to the server's operator, who enrols it and sends a kit back")


@app.command()
def enrol(
    folder: ServerFolder,
    cards: Annotated[list[Path], typer.Argument(metavar="CARD...", help="Cards, as `fedft keys site` makes them.")],
) -> None:
    """Add sites to the roster, all or none."""
    from fedft.security import roster as keys

    for member in keys.enrol_all(folder / "roster.toml", cards):
        typer.echo(f"enrolled {member.name}; fingerprint {member.fingerprint()}")
    typer.echo("next: compare each fingerprint with the one that `fedft keys site` showed to the site's operator")
    typer.echo("a running server takes new sites in at its next round")


@app.command()
def revoke(folder: ServerFolder, name: Annotated[str, typer.Argument(help="The site's name in the roster.")]) -> None:
    """Let a site's keys count no longer."""
    from fedft.security import roster as keys

    keys.revoke(folder / "roster.toml", name)
    typer.echo(f"revoked {name}")
    typer.echo("a running server takes no more of its answers from now on, and no longer waits for it")


@app.command()
def remove(
    folder: ServerFolder,
    names: Annotated[list[str], typer.Argument(metavar="SITE...", help="Names in the roster.")],
) -> None:
    """Take sites out of the roster; what they were stays in roster.log beside it."""
    from fedft.security import roster as keys

    keys.remove(folder / "roster.toml", names)
    for name in names:
        typer.echo(f"removed {name}")
    typer.echo(f"what they were is in {folder / 'roster.log'}; a card enrols a site of these names again")


@app.command()
def kit(
    folder: ServerFolder,
    name: Annotated[str, typer.Argument(metavar="SITE", help="The site's name in the roster.")],
    to: Annotated[Path | None, typer.Option(help="File to write (default: SITE.kit.toml).")] = None,
    address: Annotated[
        str, typer.Option(help="HOST:PORT of the server (default: the certificate's first name, port 9443).")
    ] = "",
) -> None:
    """Write one file with all that a site needs of the server; nothing in it is secret."""
    from fedft import durable
    from fedft.security import key_files, kits

    made = kits.made(folder, name, address)
    path = to or Path(f"{durable.folder_name(name)}.kit.toml")
    key_files.write_new(path, made.text().encode(), key_files.PUBLIC)
    typer.echo(f"made {path}, for {made.site} at {made.address}; fingerprint {made.fingerprint()}")
    typer.echo(f"next: hand it to the site's operator, who runs `fedft keys unpack {path.name} keys`")


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="KIT", help="As the server's `fedft keys kit` makes it.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site's own key folder.")],
    replace: Annotated[bool, typer.Option("--replace", help="Trust this server in place of the one before.")] = False,
) -> None:
    """Put the server's public files where a site's keys are, and a first site file beside that folder."""
    from fedft.client import suggested_file
    from fedft.security import key_files, kits

    found = kits.read(file)
    new = kits.unpack(found, folder, replace=replace)
    typer.echo(f"{folder}: {', '.join(new) or 'nothing'} new, of {found.address}; fingerprint {found.fingerprint()}")
    typer.echo("next: compare it with the one that `fedft keys kit` showed to the server's operator")
    site_file = folder.absolute().parent / "site.toml"
    if site_file.exists():
        typer.echo(f"{site_file} is there, and stays; its [server] address should be {found.address}")
        return
    text = suggested_file.suggested(found.site, found.address, folder.absolute().name)
    key_files.write_new(site_file, text.encode(), key_files.PUBLIC)
    typer.echo(f"made {site_file}: it allows nothing yet; say where model and rows are, and what [policy] allows")


@app.command(name="list")
def list_(
    folder: ServerFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of a table.")] = False,
) -> None:
    """Show the roster."""
    from fedft.reports.terminal import table
    from fedft.security import roster as keys

    rows = [
        {
            "site": m.name,
            "state": m.state(),
            "max_examples": m.max_examples,
            "not_before": m.not_before.isoformat() if m.not_before else None,
            "not_after": m.not_after.isoformat() if m.not_after else None,
            "fingerprint": m.fingerprint(),
        }
        for m in keys.load_roster(folder / "roster.toml").members.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    elif rows:
        table(rows, [c for c in rows[0] if any(row[c] is not None for row in rows)])
    else:
        typer.echo(f"no sites yet\nnext: fedft keys enrol {folder} CARD")


@app.command()
def book(
    roster: Annotated[Path, typer.Argument(metavar="ROSTER", help="A file with the cards of all sites.")],
) -> None:
    """Show what operators compare by telephone before secure sums: whether all have the same keys of the same sites."""
    from fedft.privacy.secure_sum.context import roster_digest, threshold
    from fedft.security import roster as keys
    from fedft.security.site_table import grouped

    cards = keys.load_roster(roster).cards
    if not cards:
        raise ConfigError(f"{roster}: no sites")
    typer.echo(
        f"{len(cards)} sites, of which {threshold(len(cards))} open a sum; {grouped(roster_digest(cards).hex())}"
    )
    typer.echo("next: compare it with every other operator's by telephone, and name the file in [keys] roster")


@app.command()
def renew(
    folder: ServerFolder,
    host: Annotated[
        list[str] | None, typer.Option(help="As for `fedft keys server`. (default: those of the present certificate)")
    ] = None,
    days: Days = 365,
) -> None:
    """Make a new TLS certificate from the same authority; sites keep what they have."""
    from fedft.security import new_keys

    new_keys.renew(folder, host or (), days)
    facts = new_keys.certificate_facts(folder / "server.pem")
    typer.echo(f"made {facts.path}, for {', '.join(facts.names)}, valid until {facts.not_after:%Y-%m-%d}")
    typer.echo("next: restart the server if it runs; the sites keep their ca.pem and do nothing")


@app.command()
def rotate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A server's key folder, or a site's.")],
    finish: Annotated[bool, typer.Option("--finish", help="End the overlap: only the new keys stay.")] = False,
    early: Annotated[bool, typer.Option("--early", help="A server's: end it before its date.")] = False,
    days: Annotated[int, typer.Option(help="A server's: days in which its sites go over.")] = 30,
) -> None:
    """Replace keys by new ones that the old ones sign for, without a round lost; then --finish."""
    from fedft.security import enrolment, kits, roster, rotation

    if rotation.is_server(folder):
        if finish:
            rotation.finish_server(folder, early=early)
            typer.echo(f"{folder}: a new certificate by the new authority, which is the only one now")
            typer.echo("next: restart the server; a site that was away all the time needs a new kit (`fedft keys kit`)")
            return
        found = rotation.rotate_server(folder, days)
        typer.echo(
            f"{folder}: a new signing key, and a new authority beside the old; fingerprint {kits.fingerprint(folder)}"
        )
        typer.echo("next: restart the server, and back its keys up; sites that it asks go over by themselves")
        typer.echo(f"from {found.until:%Y-%m-%d} on: `fedft keys rotate {folder} --finish`")
        return
    if finish:
        made = rotation.finish_site(folder)
        typer.echo(f"{folder}: only the new keys are left; fingerprint {made.fingerprint()}")
        typer.echo("next: restart `fedft client`")
        return
    card = rotation.rotate_site(folder)
    typer.echo(f"{folder}: next keys beside those in use; fingerprint {roster.read_card(card).fingerprint()}")
    typer.echo(f"next: hand {card} to the server's operator, who enrols it; the old key has signed it")
    typer.echo(
        f"then: `fedft keys rotate {folder} --finish`, and restart `fedft client`, within {enrolment.OVERLAP.days} days"
    )
