"""`fedft probe`: whether a server or a site is well, for the health checks of containers; loads no torch."""

from pathlib import Path
from typing import Annotated

import typer

from fedft.errors import ConfigError


def probe(
    what: Annotated[str, typer.Argument(metavar="HOST:PORT|SITE.toml", help="A server's port, or this site's file.")],
    ca: Annotated[Path, typer.Option(help="Of a port: the certificate authority that it must be of.")] = Path(
        "keys/ca.pem"
    ),
    within: Annotated[float, typer.Option(help="Of a site: seconds since it last heard the server, at most.")] = 120.0,
) -> None:
    """Exit code 0 if a server answers over TLS, or if the client of a site heard its server lately; else 1."""
    well, found = _site(Path(what), within) if what.endswith(".toml") else _server(what, ca)
    typer.echo(found, err=not well)
    if not well:
        raise typer.Exit(1)


def _server(address: str, ca: Path) -> tuple[bool, str]:
    from fedft.board.listener import loopback
    from fedft.carriers import connectivity_check
    from fedft.cli.deploy import address_of

    host, _ = address_of(address, "HOST:PORT")
    try:
        authority = ca.read_bytes()
    except OSError as e:
        raise ConfigError(f"--ca {ca}: cannot be read ({e.strerror}); it is ca.pem of the server's key folder") from e
    here = loopback(host)  # its certificate is for the names under which sites reach it
    try:
        reached = connectivity_check.knock(address, authority, check_host=not here, proxies=not here)
    except connectivity_check.Unreachable as e:
        return False, f"{e}; {e.remedy}"
    return True, f"{address} answers over TLS in {reached.seconds:.2f} s"


def _site(file: Path, within: float) -> tuple[bool, str]:
    from fedft.client import contact, site_file

    site = site_file.load(file)
    ago = contact.seconds_ago(Path(site.site.state))
    if ago is None:
        return (
            False,
            f"site {site.site.name} never heard its server {site.server.address}; see the log of `fedft client`",
        )
    return ago <= within, f"site {site.site.name} heard its server {site.server.address} {ago:.0f} s ago"
