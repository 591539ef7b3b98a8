"""Seconds per round of a deployment whose sites train nothing: what the engine adds to the time of the bytes.

    python benchmarks/deployment/rounds.py --mib 1 --mib 50 --mib 200 --sites 2 --rounds 5 --json rounds.json

A server, its SuperLink and the sites run on this machine as they do in earnest: TLS, sealed letters, journal, commit.
The state is one float32 tensor and a local step returns a ready change at once. The same bytes through bare TLS
sockets and the same files written durably are measured in the same run, before and after, and subtracted.

    down       until the last site has the plan          aggregate  journal read back, mean, new state
    site       plan taken up, answer made durable        commit     the new state made durable
    up         until the last answer is in the journal   rest       digests, metrics, the next round's beginning
    fsync      of all that, the server's waits for the disk

Sites are processes of their own, or with --together threads of one (many of them fit into memory then).
"""

import json
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any

import typer

PHASES = ("down", "site", "up", "aggregate", "commit", "rest")
STATUS, FETCH = 4, 5  # kinds of sealed letters, told by their byte 6
PATIENCE_S = 900.0
CHUNK = 2**20
MIB = 2**20


class Notes:
    """A process's events: a line of JSON each, with the machine's monotonic clock."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 -- lives as long as the process

    def __call__(self, what: str, **more: Any) -> None:
        """One event, now."""
        self._file.write(json.dumps({"at": time.monotonic(), "what": what, **more}) + "\n")


def vector(mib: int) -> Any:
    """A recipe whose state is one tensor and whose local step costs nothing."""
    import torch

    from fedft.contract import Trained
    from fedft.recipe import Recipe
    from fedft.update import TensorSpec

    shape = (mib * MIB // 4,)
    change = {"w": 1e-3 * torch.randn(shape, generator=torch.Generator().manual_seed(mib))}

    class Vector:
        kind, trained = "full", ("",)

        def initial(self, layout: Any, rank: int, seed: int) -> dict[str, Any]:
            return {"w": torch.zeros(shape)}

        def spec(self, layout: Any, rank: int) -> dict[str, TensorSpec]:
            return {"w": TensorSpec(shape)}

    space: Any = Vector()
    step: Any = lambda handle, batches, turn: Trained(change, {"loss": 1.0})  # noqa: E731
    return Recipe("vector", space, local=step, start=lambda handle, turn: None)


def run_config(rounds: int) -> Any:
    """The run file's content: everybody in every round, nothing evaluated, fp32 on the wire."""
    from fedft import run_file

    server = {"rounds": rounds, "quorum": 1.0, "deadline_s": PATIENCE_S}
    return run_file.from_dict(
        {"strategy": {"name": "fedit"}, "server": server, "codec": {"up": "fp32", "down": "fp32"}}
    )


# The processes


def serve(folder: Path) -> None:
    """The server's process."""
    import torch

    from fedft.carriers.flower.link import FlowerLink
    from fedft.carriers.flower.superlink import SuperLink
    from fedft.contract import Layout
    from fedft.reports.metric_log import MetricsFile
    from fedft.security import private_keys
    from fedft.security import roster as keys
    from fedft.server.checkpoint import Store
    from fedft.server.federation import Federation
    from fedft.server.loop import Loop
    from fedft.server.sealed_post import SealedPost
    from fedft.update import Job

    torch.set_num_threads(1)
    said = json.loads((folder / "said.json").read_text())
    note, place = Notes(folder / "server.jsonl"), folder / "keys"
    roster = keys.load_roster(place / "roster.toml")
    child = SuperLink("127.0.0.1", 0, place / "server.pem", place / "server.key", folder / "superlink", 2**31 - 1)
    child.start()
    note("listens", port=child.port, superlink=child.pid)
    members = {name: m.node for name, m in roster.members.items()}
    link = FlowerLink(child.address, (place / "ca.pem").read_bytes(), members, child.secret)
    config = run_config(said["rounds"])
    table = config.to_dict()
    job = Job("0123456789abcdef", 7, "d" * 64, {t: table[t] for t in ("strategy", "local", "codec")})
    store = Store(folder / "state")
    _timed(store, "save", note)
    synced = _sync_clock()

    def observe(kind: str, info: Any) -> None:
        if kind in ("round", "admitted", "line", "refused", "link"):
            more = {k: info[k] for k in ("client", "code", "reason", "bytes_up", "bytes_down", "lost") if k in info}
            note(kind, fsync=synced(), superlink=child.pid, **more)

    post = SealedPost(link, roster, private_keys.load_signing(place / "signing.key"), job.run, observe)
    layout = Layout(parameters={"w": (said["mib"] * MIB // 4,)})
    metrics = MetricsFile(folder / "metrics.jsonl", -1)
    try:
        federation = Federation(post, vector(said["mib"]), layout, config, job, store, observe, deployed=True)
        Loop(federation, metrics).run(list(members))
    finally:
        link.close()
        child.stop()


def _timed(owner: Any, name: str, note: Notes) -> None:
    inner = getattr(owner, name)

    def outer(*args: Any) -> None:
        note(f"{name} begins")
        inner(*args)
        note(f"{name} ends")

    setattr(owner, name, outer)


def _sync_clock() -> Callable[[], float]:
    """Seconds spent in fsync so far."""
    inner, spent = os.fsync, 0.0

    def outer(file: int) -> None:
        nonlocal spent
        started = time.monotonic()
        inner(file)
        spent += time.monotonic() - started

    os.fsync = outer  # type: ignore[assignment]
    return lambda: spent


def attend(folder: Path, names: list[str]) -> None:
    """The process of these sites."""
    import torch

    from fedft.carriers.flower.site_node import Node
    from fedft.client.disk import SiteDisk
    from fedft.client.requests import Responder
    from fedft.client.train import Client
    from fedft.security import private_keys

    torch.set_num_threads(1)
    said, place = json.loads((folder / "said.json").read_text()), folder / "keys"
    config, recipe = run_config(said["rounds"]), vector(said["mib"])
    server, ca, stop = (
        private_keys.load_public(place / "server.pub"),
        (place / "ca.pem").read_bytes(),
        threading.Event(),
    )

    class Base:
        digest = "d" * 64

    def one(name: str) -> None:
        note, own = Notes(folder / f"site-{name}.jsonl"), folder / "sites" / name
        base: Any = Base()
        handle: Any = None

        def join(job: Any) -> Client:
            rows: list[Any] = [None] * 10
            return Client(name, rows, [], base, handle, recipe, config)

        signing, disk = private_keys.load_signing(own / "signing.key"), SiteDisk(own / "state")
        responder = Responder(name, signing, server, disk, join, lambda plan: None)

        def work() -> None:
            while not stop.is_set():
                responder.work(1.0)

        def handle_(kind: str, payload: bytes, reply: Callable[[bytes], None]) -> None:
            note("got", kind=payload[6], size=len(payload))

            def answer(data: bytes) -> None:
                note("says", kind=data[6], to=payload[6], size=len(data))
                reply(data)

            responder.take(payload, answer)

        threading.Thread(target=work, daemon=True).start()
        Node(said["address"], ca, private_keys.load_ecdsa(own / "node.key")).run(handle_, stop)

    for name in names[1:]:
        threading.Thread(target=one, args=[name], daemon=True).start()
    one(names[0])


# The same bytes without us


def through_tls(place: Path, mib: int, sites: int) -> float:
    """Seconds for as many bytes to each of `sites` other processes and back, over bare TLS sockets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(place / "server.pem", place / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))
    ours = get_context("fork")
    peers = [ours.Process(target=_echo, args=(place / "ca.pem", listener.getsockname()[1], mib)) for _ in range(sites)]
    for p in peers:
        p.start()
    ends = [context.wrap_socket(listener.accept()[0], server_side=True) for _ in peers]
    for end in ends:
        end.recv(1)
    started = time.monotonic()
    with ThreadPoolExecutor(sites) as pool:
        list(pool.map(lambda end: _there_and_back(end, mib), ends))
    seconds = time.monotonic() - started
    for p in peers:
        p.join()
    for end in ends:
        end.close()
    listener.close()
    return seconds


def _echo(ca: Path, port: int, mib: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        ssl.create_default_context(cafile=str(ca)).wrap_socket(raw, server_hostname="localhost") as end,
    ):
        end.send(b"!")
        _take(end, mib)
        _give(end, mib)


def _there_and_back(end: ssl.SSLSocket, mib: int) -> None:
    _give(end, mib)
    _take(end, mib)


def _give(end: ssl.SSLSocket, mib: int) -> None:
    piece = os.urandom(CHUNK)
    for _ in range(mib):
        end.sendall(piece)


def _take(end: ssl.SSLSocket, mib: int) -> None:
    left, buffer = mib * CHUNK, bytearray(CHUNK)
    while left:
        left -= end.recv_into(buffer, min(left, CHUNK))


def to_disk(folder: Path, mib: int, sites: int) -> float:
    """Seconds for the durable writes a round waits for: answers side by side, journal entries in turn, the state."""
    from fedft import durable

    body = os.urandom(mib * MIB)
    aside = folder / "bare"
    aside.mkdir()

    def write(i: int) -> None:
        durable.write(aside / str(i), body)

    started = time.monotonic()
    with ThreadPoolExecutor(sites) as pool:
        list(pool.map(write, range(sites)))
    for i in range(sites + 1):
        write(sites + i)
    seconds = time.monotonic() - started
    shutil.rmtree(aside)
    return seconds


# One size


def measure(mib: int, sites: int, rounds: int, together: bool) -> dict[str, Any]:
    """All figures of one size."""
    folder = Path(mkdtemp(prefix="fedft-rounds-"))
    names = [f"site{i:03d}" for i in range(sites)]
    try:
        rehearse(folder, names)
        tls, disk = [], []
        for _ in range(3):
            tls.append(through_tls(folder / "keys", mib, sites))
            disk.append(to_disk(folder, mib, sites))
        found = deployed(folder, names, mib, rounds, together)
        for _ in range(3):
            tls.append(through_tls(folder / "keys", mib, sites))
            disk.append(to_disk(folder, mib, sites))
        bytes_s, disk_s = statistics.median(tls), statistics.median(disk)
        found |= {"mib": mib, "sites": sites, "tls_s": bytes_s, "disk_s": disk_s}
        found["beyond_s"] = found["round_s"]["median"] - bytes_s - disk_s
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rehearse(folder: Path, names: list[str]) -> None:
    """Keys of everybody."""
    from fedft.security import new_keys
    from fedft.security import roster as keys

    new_keys.make_server(folder / "keys", ["localhost", "127.0.0.1"])
    for name in names:
        keys.enrol(folder / "keys" / "roster.toml", new_keys.make_site(folder / "sites" / name, name))


def deployed(folder: Path, names: list[str], mib: int, rounds: int, together: bool) -> dict[str, Any]:
    """A run of one round more than asked for: the first one has the enrolment in it and is left out."""
    said: dict[str, Any] = {"mib": mib, "rounds": rounds + 1}
    (folder / "said.json").write_text(json.dumps(said))
    with _ending() as start:
        server = start("--serve", folder, folder / "server.log")
        port = _first(folder / "server.jsonl", server)["port"]
        (folder / "said.json").write_text(json.dumps(said | {"address": f"127.0.0.1:{port}"}))
        groups = [names] if together else [[name] for name in names]
        clients = [start("--site", folder, folder / f"{g[0]}.log", ",".join(g)) for g in groups]
        pids = {"server": server.pid} | {g[0]: c.pid for g, c in zip(groups, clients, strict=True)}
        watch = Watch(folder, pids)
        until = time.monotonic() + PATIENCE_S
        while server.poll() is None and time.monotonic() < until:
            watch.look()
            time.sleep(0.05)
        alive = sum(c.poll() is None for c in clients)
        if server.returncode != 0:
            raise SystemExit(f"server: {server.returncode}\n{(folder / 'server.log').read_text()[-3000:]}")
    return phases(folder, names) | watch.found() | {"site_pids": list(pids.values())[1:], "same_pids": alive}


@contextmanager
def _ending() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes of this script, which end with the block."""
    started: list[subprocess.Popen[bytes]] = []

    def start(role: str, folder: Path, log: Path, *args: str) -> subprocess.Popen[bytes]:
        quiet = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with open(log, "wb") as out:
            command = [sys.executable, __file__, "--folder", str(folder), role, *args]
            started.append(subprocess.Popen(command, stdout=out, stderr=out, env=quiet))
        return started[-1]

    try:
        yield start
    finally:
        for p in started[::-1]:
            p.kill()
            p.wait()


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _first(path: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    while not (found := _lines(path)):
        if process.poll() is not None:
            raise SystemExit((path.parent / "server.log").read_text()[-3000:])
        time.sleep(0.05)
    return found[0]


class Watch:
    """CPU and memory of the processes, as a run goes on."""

    def __init__(self, folder: Path, pids: dict[str, int]) -> None:
        self._path, self._pids = folder / "server.jsonl", dict(pids)
        self._pids["superlink"] = _lines(self._path)[0]["superlink"]
        self._cpu: list[dict[str, float]] = []
        self._lines, self._started = 0, time.monotonic()
        self.peak: dict[str, float] = {}
        self.resident: list[dict[str, float]] = []
        self._looked = 0.0

    def look(self) -> None:
        """Note CPU when a round has ended, and memory twice a second."""
        ended = self._path.read_text().count('"what": "line"')
        if ended != self._lines:
            self._lines = ended
            self._cpu.append({name: _cpu(pid) for name, pid in self._pids.items()})
        if time.monotonic() > self._looked + 0.5:
            self._looked = time.monotonic()
            now = {name: _memory(pid) for name, pid in self._pids.items()}
            for name, (_, peak) in now.items():
                self.peak[name] = max(peak, self.peak.get(name, 0.0))
            seen = {name: now[name][0] for name in ("server", "superlink")}
            self.resident.append({"s": round(self._looked - self._started, 1), **seen})

    def found(self) -> dict[str, Any]:
        """CPU seconds per round after the first one, and MiB."""
        a, b = self._cpu[1], self._cpu[-1] if self._cpu[-1]["server"] else self._cpu[-2]
        rounds = max(1, len(self._cpu) - (2 if self._cpu[-1]["server"] else 3))
        cpu = {name: round((b[name] - a[name]) / rounds, 3) for name in self._pids}
        return {"cpu_s": cpu, "peak_mib": self.peak, "resident_mib": self.resident}


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> tuple[float, float]:
    """MiB now and at most."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in text.splitlines() if line[:2] == "Vm"}
        return round(found["VmRSS"]), round(found["VmHWM"])
    except (OSError, KeyError):
        return 0.0, 0.0


def phases(folder: Path, names: list[str]) -> dict[str, Any]:
    """Where each round's time went, from everybody's notes."""
    server = _lines(folder / "server.jsonl")
    sites = {name: _lines(folder / f"site-{name}.jsonl") for name in names}
    ends = [e for e in server if e["what"] == "line"]
    rounds = []
    for before, end in pairwise(ends[1:]):
        inside = lambda events, a=before["at"], b=end["at"]: [e for e in events if a < e["at"] < b]  # noqa: E731
        at = {e["what"]: e["at"] for e in inside(server)}  # the last of each kind
        heard = [e for events in sites.values() for e in inside(events)]
        plan = max(e["at"] for e in heard if e["what"] == "got" and e["kind"] == 2)
        ready = max(e["at"] for e in heard if e["what"] == "says" and e["to"] == 2)
        marks = [at["round"], plan, ready, at["admitted"], at["save begins"], at["save ends"]]
        spent = dict(zip(PHASES, [b - a for a, b in pairwise(marks)], strict=False))
        spent["rest"] = end["at"] - before["at"] - sum(spent.values())
        asked = sum(e["what"] == "got" and e["kind"] == STATUS for e in heard)
        spent |= {"fsync": end["fsync"] - before["fsync"], "status": asked, "all": end["at"] - before["at"]}
        rounds.append(spent | {"up_bytes": end["bytes_up"], "down_bytes": end["bytes_down"]})
    all_s = [r["all"] for r in rounds]
    return {
        "round_s": {"median": statistics.median(all_s), "min": min(all_s), "max": max(all_s)},
        "phases_s": {p: round(statistics.median(r[p] for r in rounds), 3) for p in (*PHASES, "fsync")},
        "status_per_round": statistics.median(r["status"] for r in rounds),
        "bytes": {"up": rounds[-1]["up_bytes"], "down": rounds[-1]["down_bytes"]},
        "refused": sum(e["what"] == "refused" for e in server),
    }


def main(
    mib: Annotated[list[int], typer.Option(help="Size of the state; may be given again.")] = [1, 50, 200],  # noqa: B006
    sites: Annotated[list[int], typer.Option(help="Number of sites; may be given again.")] = [2],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds measured.")] = 5,
    together: Annotated[bool, typer.Option(help="All sites in one process.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
    serve_: Annotated[bool, typer.Option("--serve", hidden=True)] = False,
    site: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Seconds per round without training, by size of the state."""
    if folder and serve_:
        return serve(folder)
    if folder and site:
        return attend(folder, site.split(","))
    found = []
    for n in sites:
        for size in mib:
            load = os.getloadavg()[0]
            found.append(r := measure(size, n, rounds, together) | {"load": [load, os.getloadavg()[0]]})
            show(r)
            if json_:
                json_.write_text(json.dumps(found, indent=1) + "\n")
    return None


def show(r: dict[str, Any]) -> None:
    """One size, for people."""
    s, both = r["round_s"], r["bytes"]
    spent = ", ".join(f"{p} {v:.2f}" for p, v in r["phases_s"].items())
    sites = [v for k, v in r["cpu_s"].items() if k not in ("server", "superlink")]
    cpu = f"server {r['cpu_s']['server']:.2f}, superlink {r['cpu_s']['superlink']:.2f}, sites {sum(sites):.2f}"
    peak = f"server {r['peak_mib']['server']:.0f}, superlink {r['peak_mib']['superlink']:.0f}"
    typer.echo(
        f"{r['mib']} MiB, {r['sites']} sites, load {r['load'][0]:.1f} to {r['load'][1]:.1f}\n"
        f"  round  {s['median']:.2f} s (from {s['min']:.2f} to {s['max']:.2f}): {spent}\n"
        f"  bytes  {both['up']} up, {both['down']} down; bare TLS {r['tls_s']:.2f} s, bare disk {r['disk_s']:.2f} s, "
        f"beyond them {r['beyond_s']:.2f} s\n"
        f"  CPU s  {cpu} per round; peak MiB {peak}; sites' processes {r['site_pids']}, "
        f"{r['same_pids']} of {len(r['site_pids'])} still the same; "
        f"status asked {r['status_per_round']}, refused {r['refused']}"
    )


if __name__ == "__main__":
    typer.run(main)
