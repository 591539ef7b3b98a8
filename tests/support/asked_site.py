"""A site that is asked to take part in a run: its settings, its file, a server's job, and a clock for deployments."""

from dataclasses import replace
from pathlib import Path

from fedft import run_file
from fedft.client import site_settings
from fedft.server.job import job_of
from fedft.update import Job

DIGEST = "0123456789abcdef" * 4
SITE = site_settings.SiteConfig(
    site_settings.Site("north", "/state"),
    site_settings.SiteServer("127.0.0.1:9092", "/ca.pem", "/server.pub"),
    site_settings.SiteModel("/model", "cpu"),
    site_settings.SiteData("/train.jsonl"),
    policy=site_settings.Policy(strategies=["flora"]),
)
RUN = run_file.from_dict({"strategy": {"name": "flora"}, "data": {"max_length": 96}, "server": {"seed": 7}})
FILES = ("train.jsonl", "keys/ca.pem", "keys/server.pub", "keys/signing.key", "keys/node.key")


def job(**tables: dict[str, object]) -> Job:
    """The job of a run, keys of its tables changed."""
    good = job_of(RUN, DIGEST, b"")
    return replace(good, tables={**good.tables, **{t: {**good.table(t), **keys} for t, keys in tables.items()}})


def site_file(folder: Path, more: str = "") -> Path:
    """A site file in `folder`, with what it names; `more` are lines of [site] and other tables."""
    (folder / "keys").mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).write_text("{}\n", encoding="utf-8")
    tables = '[server]\naddress = "127.0.0.1:9092"\n[model]\nid = "stdlib-base"\n[data]\ntrain = "train.jsonl"\n'
    file = folder / "site.toml"
    file.write_text(f'{tables}[site]\nname = "north"\n{more}', encoding="utf-8")
    return file
