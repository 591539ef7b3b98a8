"""`fedft doctor`: what stands in the way of a server or a site, each with its remedy."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedft.cli.options import Allow
from fedft.errors import FedftError

if TYPE_CHECKING:
    from fedft.cli.checks_machine import Finding
    from fedft.client.site_settings import Policy, SiteConfig
    from fedft.config import RunConfig
    from fedft.data.records import Row


def doctor(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE.toml]", help="A site file; with --keys, a run file.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="The server's key folder: check a server.")] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT on which the server shall listen.")] = "127.0.0.1:9443",
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address under which sites reach the server; repeat it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The server's run folder.")] = Path(),
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not load the base model.")] = False,
    allow: Allow = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Check this machine, a site (SITE.toml) or a server (--keys DIR): what was found, and a remedy for each fault."""
    from fedft.cli.checks_machine import FAIL

    if keys is not None:
        found = _server(keys, file, listen, host or [], out, no_model)
    elif file is not None:
        found = _site(file, no_model)
    else:
        found = _machine()
    rows = []
    with _no_warnings():
        for row in found:
            rows.append(row)
            if not as_json:
                typer.echo(f"{row.state:<6}{row.check:<13}{row.found}")
                if row.remedy:
                    typer.echo(f"{'':<19}-> {row.remedy}")
    failed = any(row.state == FAIL for row in rows)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [vars(row) for row in rows]}))
    if failed:
        raise typer.Exit(1)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Inside, nothing below an error is logged: what is wrong is a row."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _machine(threads: int = 1, device: str = "cpu", server: str | None = None) -> Iterator["Finding"]:
    from fedft.cli import checks_machine

    yield from checks_machine.findings_of("libraries", checks_machine.libraries)
    yield from checks_machine.findings_of("processor", lambda: checks_machine.processor(threads))
    yield from checks_machine.findings_of("memory", checks_machine.memory)
    yield from checks_machine.findings_of("devices", lambda: checks_machine.devices(device))
    yield from checks_machine.findings_of("proxies", lambda: checks_machine.proxies(server))


def _site(file: Path, no_model: bool) -> Iterator["Finding"]:
    """A site file that cannot be read costs the checks that need it, and no others."""
    from fedft.cli.checks_machine import OK, Finding, findings_of

    loaded: list[SiteConfig] = []

    def load() -> Iterator[Finding]:
        from fedft.client import site_file

        loaded.append(site_file.load(file))
        yield Finding("site", OK, f"{loaded[0].site.name}, by {file}")

    yield from findings_of("site", load)
    if loaded:
        yield from _machine(loaded[0].local.threads, loaded[0].model.device, _host_of(loaded[0].server.address))
        yield from _site_checks(loaded[0], no_model)
    else:
        yield from _machine()


def _site_checks(site: "SiteConfig", no_model: bool) -> Iterator["Finding"]:
    from fedft import allowed_code
    from fedft.cli import checks_deployment, checks_privacy, checks_records, checks_site
    from fedft.cli import checks_machine as doctor
    from fedft.cli.checks_machine import findings_of

    allowed_code.allow(site.own_code)  # as `fedft client` does
    own, data = Path(site.keys.folder), site.data
    rows: list[Row] = []
    yield from findings_of("state", lambda: doctor.disk("state", Path(site.site.state)))
    yield from findings_of("state", lambda: doctor.written("state", Path(site.site.state)))
    yield from findings_of("keys", lambda: checks_deployment.site_keys(own, Path(site.server.key)))
    yield from findings_of(
        "server",
        lambda: checks_deployment.connection(
            site.server.address, Path(site.server.ca), checks_deployment.node_key(own), _accepted(site)
        ),
    )
    yield from findings_of("rows", lambda: checks_records.site_rows(site, rows))
    yield from findings_of("records", lambda: checks_records.forms(data, rows))
    yield _policy(site.policy)
    yield from findings_of("terms", lambda: checks_site.terms(site))
    yield from findings_of("privacy", lambda: checks_privacy.of_site(site))
    if no_model:
        return

    def model() -> Iterator["Finding"]:
        base = doctor.site_base(site.model.id, site.model.device, site.model.dtype or "float32")
        yield from doctor.site_model(base, site.policy.base)
        yield from findings_of("records", lambda: checks_records.encoded(data, rows, base))
        only = "example-dp" in site.policy.require
        yield from findings_of("privacy", lambda: checks_privacy.self_test(base, only))

    yield from findings_of("model", model)


def _accepted(site: "SiteConfig") -> bytes:
    """The authorities that the site trusts since its server has replaced its keys, in PEM; b"" for none."""
    from fedft.client.server_trust import ServerTrust

    with suppress(FedftError, OSError):  # of files that have rows of their own
        return ServerTrust(Path(site.server.key), Path(site.server.ca), Path(site.site.state)).ca
    return b""


def _policy(p: "Policy") -> "Finding":
    from fedft.cli.checks_machine import OK, WARN, Finding

    if not p.strategies:
        return Finding(
            "policy", WARN, "no strategy is allowed: every run is refused", "name some in [policy] strategies"
        )
    base = "whatever [model] id is" if p.base is None else ", ".join(d[:12] for d in p.base) or "none"
    limits = f"rank {p.max_rank}, {p.max_steps} steps, learning rate {p.max_learning_rate:g}"
    limits += f", batch {p.max_batch_size}, {p.max_tokens} tokens, {p.max_download_mib} MiB down"
    limits += f", {p.max_work} tokens a round" if p.max_work is not None else ""
    return Finding("policy", OK, f"{', '.join(p.strategies)} on {', '.join(p.targets)}; base: {base}; at most {limits}")


def _server(
    keys: Path, run: Path | None, listen: str, hosts: list[str], out: Path, no_model: bool
) -> Iterator["Finding"]:
    from fedft.cli import checks_deployment as doctor_deploy
    from fedft.cli import checks_machine as doctor
    from fedft.cli import checks_privacy, deploy
    from fedft.cli.checks_machine import OK, Finding, findings_of

    loaded: list[RunConfig] = []

    def load() -> Iterator[Finding]:
        from fedft import run_file, strategies

        assert run is not None
        found = run_file.load(run)
        strategies.of(found)
        loaded.append(found)
        yield Finding("run", OK, f"{run}: {found.strategy.name}, {found.server.rounds} rounds")

    if run is not None:
        yield from findings_of("run", load)
    device = loaded[0].model.device if loaded else "cpu"
    yield from _machine(loaded[0].local.threads if loaded else 1, device)
    yield from findings_of("run folder", lambda: doctor.disk("run folder", out))
    yield from findings_of("run folder", lambda: doctor.written("run folder", out / "state"))
    yield from findings_of("certificate", lambda: doctor_deploy.certificate(keys, hosts))
    yield from findings_of("keys", lambda: doctor_deploy.server_keys(keys))
    quorum = loaded[0].server.quorum if loaded else None
    yield from findings_of("roster", lambda: doctor_deploy.roster(keys / "roster.toml", quorum))
    if loaded:
        yield from findings_of("privacy", lambda: checks_privacy.of_run(loaded[0], keys / "roster.toml"))
    yield from findings_of(
        "listen", lambda: doctor_deploy.listening(*deploy.address_of(listen, "--listen"), keys / "ca.pem")
    )
    if loaded and not no_model:
        m, seed = loaded[0].model, loaded[0].server.seed
        head = {"labels": m.labels, "problem_type": m.problem_type}
        yield from findings_of(
            "model",
            lambda: doctor.model(m.id, m.task, dtype=m.dtype, device=m.device, seed=seed, **head),
        )


def _host_of(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")
