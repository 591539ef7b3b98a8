"""The Kubernetes manifests as read, and the objects that the commands in their comments make."""

import re
import shlex
from typing import Any

import yaml
from containers import ROLES, ROOT

FILES = {role: ROOT / role / "kubernetes.yaml" for role in ROLES}


def objects(role: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Every object of a role's file, by kind and name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for said in yaml.safe_load_all(FILES[role].read_text(encoding="utf-8")):
        key = (said["kind"], said["metadata"]["name"])
        assert key not in found, key
        found[key] = said
    return found


def one(role: str, kind: str) -> dict[str, Any]:
    """The only object of a kind."""
    (found,) = [said for (k, _), said in objects(role).items() if k == kind]
    return found


def pod(role: str) -> dict[str, Any]:
    """The template of the role's pod."""
    return dict(one(role, "Job" if role == "server" else "Deployment")["spec"]["template"])


def container(role: str) -> dict[str, Any]:
    """The one that runs the role."""
    (found,) = pod(role)["spec"]["containers"]
    return dict(found)


def made_by_hand(role: str) -> dict[tuple[str, str], set[str]]:
    """The files in each Secret and ConfigMap that the comment's kubectl commands make, by kind and name."""
    text = "\n".join(re.findall(r"^# ?(.*)$", FILES[role].read_text(encoding="utf-8"), re.MULTILINE))
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line) if line.strip().startswith("kubectl create ") else []
        if words:
            kind, rest = ("Secret", words[4:]) if words[2] == "secret" else ("ConfigMap", words[3:])
            assert all(w.startswith("--from-file=keys/") for w in rest[1:]), line
            found[kind, rest[0]] = {w.removeprefix("--from-file=keys/") for w in rest[1:]}
    return found
