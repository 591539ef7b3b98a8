"""Kubernetes manifests: all that is named is there, commands are ours, files load, and rights are few."""

import re
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import containers
import manifests
import pytest
from typer.main import get_command

from fedft import errors, run_file
from fedft.cli import main
from fedft.client import site_file
from fedft.security import new_keys, private_keys, rotation
from fedft.security import roster as keys

ROOT = containers.ROOT
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
every_role = pytest.mark.parametrize("role", containers.ROLES)


def _parse(words: list[str]) -> None:
    """Raises for what the command line of `fedft` would not take."""
    found: Any = get_command(main.app)
    found.commands[words[0]].make_context(words[0], words[1:])


def _all_containers(role: str) -> list[dict[str, Any]]:
    spec = manifests.pod(role)["spec"]
    return [*spec["initContainers"], *spec["containers"]]


@every_role
def test_every_kind_has_its_api(role: str) -> None:
    apis = {"ConfigMap": "v1", "PersistentVolumeClaim": "v1", "Service": "v1", "Job": "batch/v1"}
    apis |= {"Deployment": "apps/v1", "NetworkPolicy": "networking.k8s.io/v1"}
    for (kind, _), said in manifests.objects(role).items():
        assert said["apiVersion"] == apis[kind]
        assert said["metadata"]["labels"] == {"app": f"fedft-{role}"}
        assert set(said) <= {"apiVersion", "kind", "metadata", "spec", "data"}


@every_role
def test_what_selects_pods_selects_these(role: str) -> None:
    labels = manifests.pod(role)["metadata"]["labels"]
    assert manifests.one(role, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    if role == "server":
        assert manifests.one(role, "Service")["spec"]["selector"] == labels
    else:
        assert manifests.one(role, "Deployment")["spec"]["selector"]["matchLabels"] == labels


@every_role
def test_volumes_and_mounts_name_each_other_and_what_there_is(role: str) -> None:
    """No volume without a mount, no mount without a volume, and no volume of an object that nobody makes."""
    volumes = {v["name"]: v for v in manifests.pod(role)["spec"]["volumes"]}
    mounted = [m for c in _all_containers(role) for m in c["volumeMounts"]]
    assert {m["name"] for m in mounted} == volumes.keys()
    there, by_hand = manifests.objects(role), manifests.made_by_hand(role)
    used = set()
    for v in volumes.values():
        (source,) = set(v) - {"name"}
        if source == "emptyDir":
            continue
        kind = {"configMap": "ConfigMap", "secret": "Secret", "persistentVolumeClaim": "PersistentVolumeClaim"}[source]
        name = v[source].get("name") or v[source].get("secretName") or v[source].get("claimName")
        assert (kind, name) in {*there, *by_hand}, v
        used.add((kind, name))
        for m in mounted:
            if m["name"] == v["name"] and "subPath" in m:
                assert m["subPath"] in there[kind, name]["data"]
                assert m["mountPath"].endswith(f"/{m['subPath']}")
    assert used == {*by_hand, *(key for key in there if key[0] in ("ConfigMap", "PersistentVolumeClaim"))}


@every_role
def test_a_pod_starts_what_the_container_of_compose_starts(role: str) -> None:
    """And shows the board, which the policy lets nobody reach but the node."""
    words = manifests.container(role)["args"]
    _parse(words)
    wanted = containers.service(role)["command"]
    assert words == (wanted if role == "client" else [*wanted, "--board", "0.0.0.0:8080"])
    ready = manifests.container(role)["readinessProbe"]["exec"]["command"]
    assert ["CMD", *ready] == containers.service(role)["healthcheck"]["test"]
    assert {c["image"] for c in _all_containers(role)} == {f"fedft:{VERSION}"}


def test_ports_agree() -> None:
    words, said = manifests.container("server")["args"], manifests.container("server")
    ports = {p["name"]: p["containerPort"] for p in said["ports"]}
    listening = {o: int(words[words.index(o) + 1].rpartition(":")[2]) for o in ("--listen", "--board")}
    assert ports == {"sites": listening["--listen"], "board": listening["--board"]}
    assert str(ports["sites"]) == dict(containers.stages()[""])["EXPOSE"]
    (port,) = manifests.one("server", "Service")["spec"]["ports"]
    assert (port["targetPort"], port["port"]) == ("sites", ports["sites"])
    (rule,) = manifests.one("server", "NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"port": ports["sites"], "protocol": "TCP"}]
    assert said["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "board"}


def test_a_server_reaches_nobody_and_a_site_its_server_alone() -> None:
    server, client = (manifests.one(role, "NetworkPolicy")["spec"] for role in containers.ROLES)
    assert server["policyTypes"] == client["policyTypes"] == ["Ingress", "Egress"]
    assert server["egress"] == client["ingress"] == []
    said = tomllib.loads(manifests.one("client", "ConfigMap")["data"]["site.toml"])
    host, _, port = said["server"]["address"].rpartition(":")
    (alias,) = manifests.pod("client")["spec"]["hostAliases"]
    assert alias["hostnames"] == [host]
    (rule,) = client["egress"]
    assert rule == {
        "to": [{"ipBlock": {"cidr": f"{alias['ip']}/32"}}],
        "ports": [{"port": int(port), "protocol": "TCP"}],
    }


@every_role
def test_a_pod_may_do_no_more_than_it_needs(role: str) -> None:
    spec = manifests.pod(role)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    user = f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
    assert user == dict(containers.stages()[""])["USER"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for c in _all_containers(role):
        assert c["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert c["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in c["resources"]["limits"]
    writable = {m["mountPath"] for m in manifests.container(role)["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/var/lib/fedft", "/tmp"}


@every_role
def test_there_is_one_of_each_at_any_time(role: str) -> None:
    kind = "Job" if role == "server" else "Deployment"
    spec = manifests.one(role, kind)["spec"]
    if role == "server":
        assert (spec["parallelism"], spec["completions"], spec["podReplacementPolicy"]) == (1, 1, "Failed")
    else:
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    volumes = {v["name"]: v for v in manifests.pod(role)["spec"]["volumes"]}
    (state,) = [m["name"] for m in manifests.container(role)["volumeMounts"] if m["mountPath"] == "/var/lib/fedft"]
    claim = volumes[state]["persistentVolumeClaim"]["claimName"]
    modes = manifests.objects(role)["PersistentVolumeClaim", claim]["spec"]["accessModes"]
    assert modes == ["ReadWriteOncePod"]


def test_a_server_starts_again_after_what_passes_and_only_then() -> None:
    """The same exit codes as under systemd."""
    spec = manifests.one("server", "Job")["spec"]
    assert manifests.pod("server")["spec"]["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    (codes,) = [r["onExitCodes"] for r in spec["podFailurePolicy"]["rules"] if r["action"] == "FailJob"]
    assert codes["containerName"] == manifests.container("server")["name"]
    unit = (ROOT / "server" / "fedft-server.service").read_text(encoding="utf-8")
    (stays,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert codes["values"] == [int(code) for code in stays.split()]
    assert not {1, errors.EXIT_PAUSED} & set(codes["values"])


# -- the files, and what the first containers do with the keys --------------------------------------------------------


def _places(folder: Path) -> dict[str, str]:
    """Where a pod's folders lie in a test."""
    places = {"/etc/fedft": "etc", "/secret": "secret", "/srv/fedft": "srv", "/var/lib/fedft": "var"}
    for name in places.values():
        (folder / name).mkdir(exist_ok=True)
    return {written: str(folder / name) for written, name in places.items()}


def _first_containers(role: str, made: Path, folder: Path, more: Sequence[str] = ()) -> dict[str, str]:
    """Do what a pod does before its container starts: mount what the comment's commands made, run the first ones.

    `more`: names of files that are in the Secret besides.
    """
    places = _places(folder)
    for name in more:
        (folder / "secret" / name).write_bytes((made / name).read_bytes())
    (folder / "etc" / "keys").mkdir()
    (folder / "etc" / "roster").mkdir()
    for (kind, _), names in manifests.made_by_hand(role).items():
        for name in names:
            at = folder / ("secret" if kind == "Secret" else "etc/roster") / name
            at.write_bytes((made / name).read_bytes())
            at.chmod(0o440)  # as a Secret's files are
    for c in manifests.pod(role)["spec"]["initContainers"]:
        subprocess.run(containers.placed(c["command"], places), check=True)
    return places


def test_a_server_s_keys_are_usable_after_the_first_containers(tmp_path: Path) -> None:
    """Also for the certificate; the authority's private key is not there; a roster that is replaced is the new one."""
    made = tmp_path / "keys"
    new_keys.make_server(made, ["fl.example.org"])
    _first_containers("server", made, tmp_path)
    own = tmp_path / "etc" / "keys"
    private_keys.load_ecdsa(own / "server.key")
    private_keys.load_signing(own / "signing.key")
    assert not new_keys.certificate_facts(own / "server.pem").faults("fl.example.org")
    assert {p.name for p in own.iterdir()} == {"server.key", "server.pem", "signing.key", "ca.pem", "roster.toml"}
    assert not keys.load_roster(own / "roster.toml").members
    keys.enrol(made / "roster.toml", new_keys.make_site(tmp_path / "north", "north"))
    new = tmp_path / "etc" / "roster" / "new"
    new.write_bytes((made / "roster.toml").read_bytes())
    new.replace(tmp_path / "etc" / "roster" / "roster.toml")
    assert list(keys.load_roster(own / "roster.toml").members) == ["north"]


def test_a_pod_announces_new_keys_while_a_rotation_is_under_way(tmp_path: Path) -> None:
    made = tmp_path / "keys"
    new_keys.make_server(made, ["fl.example.org"])
    wanted = rotation.rotate_server(made)
    _first_containers("server", made, tmp_path, [rotation.SUCCESSION])
    own = tmp_path / "etc" / "keys"
    found = rotation.succession(own)
    assert found is not None
    assert found[1] == wanted
    assert private_keys.load_signing(own / "signing.key").public_key().public_bytes_raw() == wanted.new


def test_the_files_in_the_manifests_are_a_run_file_and_a_site_file(tmp_path: Path) -> None:
    """And name a strategy that the one asks for and the other allows."""
    made = tmp_path / "keys"
    new_keys.make_server(made, ["fl.example.org"])
    site = tmp_path / "site"
    new_keys.make_site(site, "north")
    for name in ("ca.pem", "server.pub"):
        (site / name).write_bytes((made / name).read_bytes())
    places = _first_containers("client", site, tmp_path)
    (tmp_path / "srv" / "base").mkdir()
    (tmp_path / "srv" / "train.jsonl").touch()
    for role, name in (("server", "run.toml"), ("client", "site.toml")):
        (text,) = containers.placed([manifests.one(role, "ConfigMap")["data"][name]], places)
        (tmp_path / "etc" / name).write_text(text)
    run, own = run_file.load(tmp_path / "etc" / "run.toml"), site_file.load(tmp_path / "etc" / "site.toml")
    assert run.strategy.name in own.policy.strategies
    assert own.site.state == str(tmp_path / "var" / "state")
    assert run.local.steps <= own.policy.max_steps
    private_keys.load_signing(Path(own.keys.folder) / "signing.key")
