"""Build a release of the committed sources: the same commit gives the same bytes, on any machine with the same tools.

    python release/build.py --to dist [--key ~/.ssh/release_ed25519] [--sbom-of fedft]

fedft-VERSION.tar.gz                 the sources, of `git archive HEAD`; what is not committed is refused
fedft-VERSION-py3-none-any.whl       built from that archive alone
fedft-VERSION.cdx.json               what is installed here of all that fedft needs (release/sbom.py)
SHA256SUMS                           of the three
SHA256SUMS.sig                       `ssh-keygen -Y sign` with --key, namespace fedft-release

Times in the archives are the commit's. Needs git and the installed setuptools; RELEASING.md says the rest.
"""

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMESPACE = "fedft-release"
SUMS = "SHA256SUMS"
BUILD = "import os, sys; os.umask(0o022); from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


class NotBuilt(Exception):
    """What keeps a release from being made, in a line."""


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> bytes:
    """What a command prints. Raises NotBuilt with the last line of its complaint."""
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
        raise NotBuilt(f"{' '.join(command[:3])} ends with {done.returncode}: {said[-1]}")
    return done.stdout


def committed(root: Path) -> int:
    """The time of the commit that is checked out, in seconds since 1970. Raises NotBuilt if a file differs."""
    if changed := run("git", "status", "--porcelain", cwd=root).decode().splitlines():
        raise NotBuilt(f"{len(changed)} files differ from the commit, the first is {changed[0][3:]}; commit them first")
    return int(run("git", "log", "-1", "--format=%ct", cwd=root))


def archives(root: Path, to: Path, epoch: int) -> tuple[Path, Path]:
    """Build source archive and wheel of the commit that is checked out in `root`, into the folder `to`.

    `epoch`: the time that all of it has, in seconds since 1970. Returns both paths. Raises NotBuilt.
    """
    env = {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONDONTWRITEBYTECODE": "1"}
    packed = run("git", "-c", "tar.umask=0022", "archive", "--format=tar", "--prefix=src/", "HEAD", cwd=root)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with tarfile.open(fileobj=io.BytesIO(packed)) as sources:
            sources.extractall(work, filter="tar")
        run(sys.executable, "-c", BUILD, "build_sdist", str(work), cwd=work / "src", env=env)
        (made,) = work.glob("*.tar.gz")
        sdist = to / made.name
        sdist.write_bytes(_settled(made.read_bytes(), epoch))
        with tarfile.open(sdist) as own:
            own.extractall(work, filter="tar")
        inside = work / made.name.removesuffix(".tar.gz")
        run(sys.executable, "-c", BUILD, "build_wheel", str(to.resolve()), cwd=inside, env=env)
    (wheel,) = to.glob("*.whl")
    return sdist, wheel


def _settled(packed: bytes, epoch: int) -> bytes:
    """The same files in a .tar.gz that says nothing of who packed them and when: sorted, of nobody, at `epoch`."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(packed)) as old, tarfile.open(fileobj=plain, mode="w") as new:
        for member in sorted(old.getmembers(), key=lambda m: m.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    out = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=epoch) as file:
        file.write(plain.getvalue())
    return out.getvalue()


def sums(folder: Path) -> Path:
    """Write SHA256SUMS of all that is in the folder; returns its path. `sha256sum --check` reads it."""
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return folder / SUMS


def sign(file: Path, key: Path) -> Path:
    """Sign a file with an SSH key; the signature's path. Raises NotBuilt."""
    run("ssh-keygen", "-q", "-Y", "sign", "-f", str(key.expanduser()), "-n", NAMESPACE, str(file), cwd=file.parent)
    return file.with_name(file.name + ".sig")


def release(root: Path, to: Path, key: Path | None, of: str) -> list[Path]:
    """Make all files of a release in the new or empty folder `to`; returns their paths. Raises NotBuilt."""
    if to.exists() and any(to.iterdir()):
        raise NotBuilt(f"{to}: wanted an empty folder")
    to.mkdir(parents=True, exist_ok=True)
    to = to.resolve()
    epoch = committed(root)
    archives(root, to, epoch)
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    listing = ["--to", str(to / f"fedft-{version}.cdx.json"), "--of", of]
    script = str(Path(__file__).with_name("sbom.py"))
    run(sys.executable, script, *listing, cwd=to, env={"SOURCE_DATE_EPOCH": str(epoch)})
    total = sums(to)
    if key:
        sign(total, key)
    return sorted(to.iterdir())


def main() -> int:
    """The command: 0, or 1 with one line of what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="folder to write, empty or new (default: dist)")
    parser.add_argument("--key", type=Path, help="SSH key that signs; without one nothing is signed")
    parser.add_argument("--sbom-of", default="fedft", help="the installed package whose bill is written")
    said = parser.parse_args()
    try:
        made = release(ROOT, said.to, said.key, said.sbom_of)
    except (NotBuilt, OSError) as e:
        sys.stderr.write(f"release: {e}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in made))
    if said.key is None:
        sys.stdout.write("not signed: --key names an SSH key\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
