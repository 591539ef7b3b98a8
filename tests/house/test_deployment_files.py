"""What operators copy works as it stands: unit files, every command in DEPLOYMENT.md and OPERATING.md.

Containers: tests/shipping.
"""

import inspect
import itertools
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.main import get_command

from fedft import errors, registry, strategies
from fedft.cli import main
from fedft.client import allowed_jobs
from fedft.client.site_settings import Policy, SiteConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, OPERATING = ((ROOT / f"{n}.md").read_text(encoding="utf-8") for n in ("DEPLOYMENT", "OPERATING"))
UNITS = {"server": ROOT / "server" / "fedft-server.service", "client": ROOT / "client" / "fedft-client.service"}


def _parse(command: list[str]) -> dict[str, Any]:
    """What the command line of `fedft` makes of the words after it; raises for what it would not take."""
    found: Any = get_command(main.app)
    context: Any = None
    words = list(command)
    while hasattr(found, "commands"):
        assert words, f"fedft {shlex.join(command)}: names no command"
        assert words[0] in found.commands, f"fedft {shlex.join(command)}: no command {words[0]!r}"
        found, words = found.commands[words[0]], words[1:]
        if hasattr(found, "commands"):  # a group may have arguments of its own: `fedft admin RUN ...`
            words = words[sum(p.param_type_name == "argument" for p in found.params) :]
    context = found.make_context(command[0], words)
    return dict(context.params)


def _blocks() -> list[str]:
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", DOCUMENT + OPERATING, re.DOTALL)).splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("fedft ")]


def _commands() -> list[str]:
    """Each command of the code blocks, and between backticks in the text; a group of them is none."""
    spoken = re.findall(r"`(fedft [^`]+)`", re.sub(r"```.*?```", "", DOCUMENT + OPERATING, flags=re.DOTALL))
    return [c for c in (*_blocks(), *spoken) if c not in ("fedft keys", "fedft site")]


def _unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Values by section and key, of which a unit file may have several."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(head[1], {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, f"{path.name}: {line}"
            assert re.fullmatch(r"\w+", key), f"{path.name}: {line}"
            section.setdefault(key, []).append(value)
    return sections


def _service(name: str) -> dict[str, str]:
    section = _unit(UNITS[name])["Service"]
    assert all(len(values) == 1 for values in section.values())
    return {key: value for key, (value,) in section.items()}


@pytest.mark.parametrize("command", _commands())
def test_a_command_of_the_document_is_one(command: str) -> None:
    """In a code block it is whole; in a sentence, arguments may be left out."""
    try:
        _parse(shlex.split(command)[1:])
    except Exception as e:
        if type(e).__name__ != "MissingParameter" or command in _blocks():
            raise


def test_the_document_shows_the_commands_of_a_deployment() -> None:
    said = {" ".join(re.findall(r"^fedft ((?:keys )?[a-z]+)", c)) for c in _commands()}
    assert {"keys server", "keys site", "keys enrol", "server", "client", "split", "doctor"} <= said
    assert {"keys list", "keys revoke", "keys renew"} <= said


def test_the_document_is_short() -> None:
    assert len(DOCUMENT.splitlines()) <= 240
    assert len(OPERATING.splitlines()) <= 200


def test_every_key_of_the_policy_is_explained() -> None:
    table = DOCUMENT.partition("## What a site allows")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(Policy.__dataclass_fields__)


def test_every_refusal_of_the_policy_is_named_by_its_key() -> None:
    table = DOCUMENT.partition("## What a site allows")[2].partition("\n## ")[0]
    codes = set(re.findall(r"policy_\w+", inspect.getsource(allowed_jobs)))
    assert set(re.findall(r"`(policy_\w+)` \|$", table, re.MULTILINE)) == codes


def test_the_example_of_a_site_file_shows_every_key() -> None:
    """Those that are off by default in a comment."""
    said, table = set(), ""
    for line in (ROOT / "client" / "site.toml").read_text(encoding="utf-8").splitlines():
        if head := re.match(r"\[(\w+)\]", line):
            table = head[1]
        elif key := re.match(r"(?:# )?(\w+) = ", line):
            said.add(f"{table}.{key[1]}")
    templates = {"data.text", "data.label"}  # named in a comment on their like
    known = {f"{t}.{f.name}" for t, kind in get_type_hints(SiteConfig).items() for f in fields(kind)}
    assert said == known - templates


def test_strategies_that_show_sites_to_each_other_are_named() -> None:
    (line,) = re.findall(r"^- (.*) show every site what each of the others sent", DOCUMENT, re.MULTILINE)
    reveal = {name for name in registry.BUILT_IN if strategies.make(name, {}).reveals_clients}
    assert set(re.findall(r"`(\w+)`", line)) == reveal


def test_every_exit_code_is_explained() -> None:
    table = DOCUMENT.partition("## Exit codes")[2]
    said = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert said == {0, 1} | {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_the_proxy_recipe_forwards_what_sites_need_of_a_superlink_and_no_more() -> None:
    (pattern,) = re.findall(r"location ~ (\S+) \{", DOCUMENT)
    may = {"activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages"}
    may |= {"pull-object", "push-object", "confirm-message-received"}
    every = may | {"register-node", "unregister-node", "get-run", "get-fab"}
    assert {name for name in every if re.search(pattern, f"/v1/fleet/{name}")} == may
    assert not re.search(pattern, "/v1/control/list-nodes")
    assert "client_max_body_size 8m;" in DOCUMENT  # Flower cuts arrays into pieces of 5 MiB


# -- systemd ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_command_that_exists_with_the_document_s_paths(name: str) -> None:
    program, *words = shlex.split(_service(name)["ExecStart"])
    assert words[0] == name
    _parse(words)
    for path in (str(Path(program).parents[1]), *(w for w in words if w.startswith("/"))):
        assert f"`{path}`" in DOCUMENT


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_again_after_what_passes_and_only_then(name: str) -> None:
    service = _service(name)
    assert service["Restart"] == "on-failure"
    assert service["SuccessExitStatus"] == str(errors.EXIT_INTERRUPTED)
    stays = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert {errors.EXIT_USAGE, errors.EXIT_DAMAGED, errors.EXIT_KEYS} <= stays
    assert not {1, errors.EXIT_PAUSED} & stays
    assert {"RestartSec", "RestartSteps", "RestartMaxDelaySec"} <= service.keys()


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_may_do_no_more_than_it_needs(name: str) -> None:
    service = _service(name)
    assert service["User"] == "fedft"
    assert (service["ProtectSystem"], service["CapabilityBoundingSet"]) == ("strict", "")
    for key in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictNamespaces", "RestrictSUIDSGID"):
        assert service[key] == "yes"
    places = {"StateDirectory": "/var/lib/", "CacheDirectory": "/var/cache/"}
    for key, base in places.items():
        assert f"`{base}{service[key]}" in DOCUMENT
    variables = dict(v.split("=", 1) for v in service["Environment"].split())
    assert variables["HF_HUB_OFFLINE"] == "1"
    writable = tuple(f"{base}{service[key]}" for key, base in places.items())
    assert all(v.startswith(writable) for v in variables.values() if v.startswith("/"))
    assert all(w.startswith(writable) for o, w in _options(name) if o == "--out")


def _options(name: str) -> list[tuple[str, str]]:
    words = shlex.split(_service(name)["ExecStart"])
    return list(itertools.pairwise(words))
