"""What a machine and a model lack before `fedft server` or `fedft client` can run; `checks_deployment.py` has keys and
addresses, `checks_records.py` a site's records.

A check gives rows: what was looked at, "ok", "warn" or "FAIL", what was found, and what to do about it. Whatever is
missing, a check gives a row and never an error; nothing is changed anywhere.
"""

import os
import platform
import shutil
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from fedft import __version__, durable
from fedft.errors import FedftError

if TYPE_CHECKING:
    from fedft.models.load import Base

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "FAIL"
LOW_BYTES = 2**30  # of memory or disk: torch alone takes about as much


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was looked at, how it is, what was found, and what to do about it."""

    check: str
    state: Literal["ok", "warn", "FAIL"]
    found: str
    remedy: str = ""


def findings_of(check: str, find: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of `find`; an exception in it becomes a finding that fails, under the name `check`."""
    try:
        yield from find()
    except FedftError as e:
        found, remedy = halves(str(e))
        yield Finding(check, FAIL, found, remedy or "correct it in the file or option that is named")
    except Exception as e:  # a broken installation raises anything, and must not hide the other checks
        said = next(iter(str(e).splitlines()), "")[:300]
        yield Finding(check, FAIL, f"{type(e).__name__}: {said}", "install fedft anew; if that is in vain, report it")


def halves(text: str) -> tuple[str, str]:
    """(what was found, the remedy) of a message of ours, which stand before and behind its first "; ".

    >>> halves("no such file; name another")
    ('no such file', 'name another')
    """
    found, _, remedy = " ".join(text.split()).partition("; ")
    return found, remedy


# -- the machine -----------------------------------------------------------------------------------------------------


def libraries() -> Iterator[Finding]:
    """Python and what fedft depends on, against the ranges that it is installed with."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = platform.python_version()
    try:
        wanted = metadata.metadata("fedft")["Requires-Python"] or ""
        requirements = [Requirement(r) for r in metadata.requires("fedft") or ()]
    except metadata.PackageNotFoundError:
        yield Finding("python", OK, python)
        yield Finding(
            "libraries", WARN, "fedft is not installed, so that the versions it needs are not known", "pip install"
        )
        return
    fits = SpecifierSet(wanted).contains(python, prereleases=True)
    yield Finding("python", OK if fits else FAIL, python, "" if fits else f"install Python {wanted}")
    there = []
    for r in requirements:
        if r.marker is not None and not r.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(r.name)
        except metadata.PackageNotFoundError:
            yield Finding("libraries", FAIL, f"{r.name} is not installed", f"pip install '{r}'")
            continue
        if not r.specifier.contains(version, prereleases=True):
            yield Finding("libraries", FAIL, f"{r.name} {version}, wanted {r.specifier}", f"pip install '{r}'")
        there.append(f"{r.name} {version}")
    yield Finding("libraries", OK, ", ".join(there))


def processor(threads: int = 1) -> Iterator[Finding]:
    """Cores that this process may use; `threads` of torch are wanted."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{cores} cores, {threads} torch thread{'s' if threads > 1 else ''}"
    if threads > cores:
        yield Finding(
            "processor", WARN, found, f"[local] threads = {cores} or less: more threads than cores are slower"
        )
    else:
        yield Finding("processor", OK, found)


def memory() -> Iterator[Finding]:
    """Memory of the machine, and how much of it is free."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    if "MemAvailable" not in kib:
        yield Finding("memory", OK, "not known on this platform")
        return
    free = kib["MemAvailable"] * 1024
    found = f"{_size(kib['MemTotal'] * 1024)}, {_size(free)} of it available"
    enough = free >= LOW_BYTES
    yield Finding("memory", OK if enough else WARN, found, "" if enough else "end what takes so much")


def devices(wanted: str = "cpu") -> Iterator[Finding]:
    """Accelerators; `wanted` is the device that the model is meant to be on."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        free, total = torch.cuda.mem_get_info(i)
        with torch.cuda.device(i):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found = f"{torch.cuda.get_device_name(i)}, {_size(free)} of {_size(total)} free"
        yield Finding(f"cuda:{i}", OK, f"{found}, {'with' if bf16 else 'without'} bfloat16")
    if not count:
        yield Finding("devices", OK, f"no CUDA device (torch {torch.__version__})")
    elif wanted.startswith("cuda"):
        found = f"on {wanted}, products of float32 are in TF32 and some sums in any order: digests may differ each time"
        yield Finding(
            "repeatable", OK, found, "[local] deterministic = true where they must not, on devices of one kind"
        )
    number = wanted.partition(":")[2]
    if wanted.startswith("cuda") and int(number if number.isdecimal() else 0) >= count:
        remedy = "a driver and a torch built for CUDA (`nvidia-smi` shows the driver), or another device"
        yield Finding("devices", FAIL, f"[model] device is {wanted!r}, there are {count}", remedy)


def disk(name: str, folder: Path) -> Iterator[Finding]:
    """Room and the right to write where `folder` is, or would be made."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}: {_size(free)} free"
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        yield Finding(name, FAIL, f"{there}: cannot be written by this user", "another folder, or its owner's `chown`")
    elif free < LOW_BYTES:
        yield Finding(name, WARN, found, "make room: a full disk pauses the run")
    else:
        yield Finding(name, OK, found)


def written(name: str, folder: Path) -> Iterator[Finding]:
    """Which fedft wrote to a state folder last; nothing for one that none has written to."""
    if by := durable.written_by(folder):
        yield Finding(name, OK, f"{folder}: written by {by}; this is fedft {__version__}")


def proxies(host: str | None = None) -> Iterator[Finding]:
    """Proxies in the environment, which the way to the server takes; their values may hold passwords."""
    names = sorted({name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")})
    names = [name for name in names if os.environ[name]]
    if not names:
        yield Finding("proxies", OK, "none in the environment")
    elif host is not None and urllib.request.proxy_bypass(host):
        yield Finding("proxies", OK, f"{', '.join(names)} set, not used for {host} (NO_PROXY)")
    else:
        remedy = f"if the server is not behind it: NO_PROXY={host or 'HOST'}, also where the host is this machine"
        yield Finding(
            "proxies", WARN, f"{', '.join(names)} set: connections to the server go through that proxy", remedy
        )


# -- the model -------------------------------------------------------------------------------------------------------


def model(
    source: str, task: str, *, dtype: str = "float32", device: str = "cpu", seed: int = 0, **head: Any
) -> Iterator[Finding]:
    """The base model as a run takes it, with the digest that the sites' must have.

    `head`: `labels` and `problem_type` of a classifier.
    """
    from fedft.models import adapter_folder as models
    from fedft.models import dtypes

    dtype = dtypes.chosen(source, task, device) if dtype == "auto" else dtype
    base = models.load(source, task, **head, dtype=dtype, device=device, seed=seed)
    yield Finding("model", OK, f"{_said(source, base)}, digest {base.digest[:12]}, as {task} in {dtype}")
    if slow := dtypes.slow(dtype, task, device):
        yield Finding("dtype", WARN, slow, "another [model] dtype, or device")
    yield _tokenizer(base)


def site_base(source: str, device: str, dtype: str = "float32") -> "Base":
    """The base model of a site, which learns from the run only what it is for: for the first task that it can do.

    Raises DataError for a model that can do none.
    """
    from fedft.models import adapter_folder as models
    from fedft.models import tasks

    first: FedftError | None = None
    for task in tasks.TASKS:
        try:
            return models.load(source, task, device=device, dtype=dtype)
        except FedftError as e:
            first = first or e
    assert first is not None
    raise first


def site_model(base: "Base", allowed: Sequence[str] | None = None) -> Iterator[Finding]:
    """What a site's base model is.

    `allowed`: beginnings of digests, one of which the model should have.
    """
    from fedft.models import tasks

    found = _said(base.source, base)
    if not tasks.of(base.task).generates:
        yield Finding("model", OK, f"{found}, a classifier's body; its digest depends on the run's labels")
    elif allowed is not None and not base.digest.startswith(tuple(allowed)):
        remedy = "correct it, or give the model that it names; digests are of the weights as they are stored"
        yield Finding("model", WARN, f"{found}, digest {base.digest[:12]} is not in [policy] base", remedy)
    else:
        yield Finding("model", OK, f"{found}, digest {base.digest[:12]}")
    yield _tokenizer(base)


def _said(source: str, base: "Base") -> str:
    size = sum(p.numel() for p in base.model.parameters())
    return f"{source}: {size:,} parameters on {base.model.device}"


def _tokenizer(base: "Base") -> Finding:
    """With 12 digits of the digest that the server's and all sites' must have."""
    return Finding("tokenizer", OK, f"{len(base.tokenizer):,} tokens, digest {base.tokenizer_digest[:12]}")


def _size(n: float) -> str:
    return f"{n / 2**30:.1f} GiB"
