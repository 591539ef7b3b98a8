"""Compose files: keys that Compose knows, no more rights than needed, and commands that our command line takes."""

import re
import shlex
import tomllib
from typing import Any

import containers
import pytest
import yaml
from typer.main import get_command

from fedft.cli import main

ROOT = containers.ROOT
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
FILES = sorted(path for role in containers.ROLES for path in (ROOT / role).glob("compose*.yaml"))

# Of the Compose specification, as far as it is used here: the type of each key, a table of keys, or a list of one.
DEVICE = {"driver": str, "count": int, "capabilities": [str]}
SERVICE: dict[str, Any] = {
    "image": str,
    "build": {"context": str, "args": [str]},
    "command": [str],
    "user": str,
    "ports": [str],
    "volumes": [str],
    "environment": {str: str},
    "healthcheck": {"test": [str], "interval": str, "timeout": str, "retries": int, "start_period": str},
    "mem_limit": str,
    "logging": {"driver": str, "options": {str: str}},
    "restart": str,
    "stop_grace_period": str,
    "init": bool,
    "read_only": bool,
    "tmpfs": [str],
    "cap_drop": [str],
    "security_opt": [str],
    "deploy": {"resources": {"reservations": {"devices": [DEVICE]}}},
}


def _check(found: Any, wanted: Any, at: str) -> None:
    if isinstance(wanted, type):
        assert type(found) is wanted, f"{at}: {found!r}, wanted a {wanted.__name__}"
    elif isinstance(wanted, list):
        assert isinstance(found, list), f"{at}: {found!r}, wanted a list"
        for i, one in enumerate(found):
            _check(one, wanted[0], f"{at}[{i}]")
    else:
        assert isinstance(found, dict), f"{at}: {found!r}, wanted a table"
        for key, value in found.items():
            assert key in wanted or str in wanted, f"{at}: Compose knows no {key!r} here"
            _check(value, wanted.get(key, wanted.get(str)), f"{at}.{key}")


def _parse(words: list[str]) -> None:
    """Raises for what the command line of `fedft` would not take."""
    found: Any = get_command(main.app)
    found.commands[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_compose_file_has_keys_and_values_that_compose_takes(path: Any) -> None:
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(said) == ["services"]
    assert list(said["services"]) == [path.parent.name]
    _check(said["services"][path.parent.name], SERVICE, path.name)


def test_a_key_that_compose_does_not_know_is_found() -> None:
    for wrong in ({"imagee": "a"}, {"ports": [9443]}, {"healthcheck": {"tests": ["CMD"]}}, {"init": "yes"}):
        with pytest.raises(AssertionError):
            _check(wrong, SERVICE, "service")


@pytest.mark.parametrize("role", containers.ROLES)
def test_a_container_starts_what_the_unit_starts(role: str) -> None:
    words = containers.service(role)["command"]
    assert words == containers.started(ROOT / role / f"fedft-{role}.service")[1:]
    _parse(words)


@pytest.mark.parametrize("role", containers.ROLES)
def test_a_container_says_whether_it_is_well(role: str) -> None:
    check = containers.service(role)["healthcheck"]
    form, program, *words = check["test"]
    assert (form, program) == ("CMD", "fedft")  # without a shell
    _parse(words)
    assert all(re.fullmatch(r"\d+[sm]", check[key]) for key in ("interval", "timeout", "start_period"))


@pytest.mark.parametrize("role", containers.ROLES)
def test_a_container_may_do_no_more_than_it_needs(role: str) -> None:
    found = containers.service(role)
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    etc, var = found["volumes"]
    assert etc.endswith(":/etc/fedft:ro")
    assert var.endswith(":/var/lib/fedft")
    assert re.fullmatch(r"\$\{\w+:-[1-9]\d*:[1-9]\d*\}", found["user"])


@pytest.mark.parametrize("role", containers.ROLES)
def test_a_container_s_log_and_memory_have_an_end(role: str) -> None:
    found = containers.service(role)
    assert found["logging"]["options"].keys() == {"max-size", "max-file"}
    assert re.fullmatch(r"\$\{FEDFT_MEMORY:-\d+g\}", found["mem_limit"])


def test_only_the_server_s_listening_port_is_published() -> None:
    words = containers.service("server")["command"]
    port = words[words.index("--listen") + 1].rpartition(":")[2]
    assert containers.service("server")["ports"] == [f"{port}:{port}"]
    assert dict(containers.stages()[""])["EXPOSE"] == port
    assert not {"ports", "expose", "network_mode"} & containers.service("client").keys()


@pytest.mark.parametrize("role", containers.ROLES)
def test_both_are_one_image_of_this_version(role: str) -> None:
    found = containers.service(role)
    assert found["image"] == f"fedft:{VERSION}"
    assert found["build"] == containers.service("server")["build"]
    args = {words.partition("=")[0] for name, words in containers.instructions() if name == "ARG"}
    assert set(found["build"]["args"]) == args
    (comment,) = re.findall(r"docker build --tag (\S+) \.", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert comment == found["image"]


@pytest.mark.parametrize("role", containers.ROLES)
def test_a_gpu_is_reserved_by_a_file_on_top(role: str) -> None:
    said = yaml.safe_load((ROOT / role / "compose.cuda.yaml").read_text(encoding="utf-8"))["services"][role]
    (device,) = said["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert said["image"] == f"fedft:{VERSION}-cuda"
    commented = shlex.split((ROOT / role / "compose.cuda.yaml").read_text(encoding="utf-8").splitlines()[1])
    assert f"{role}/compose.cuda.yaml" in commented
