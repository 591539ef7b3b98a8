"""The folder in which typical mistakes are made: a tiny model, rows, a finished run, keys, and some of each broken."""

import json
import shutil
from pathlib import Path

import small_runs

RUN = """[model]
id = "base"
[data]
train = "rows.jsonl"
max_length = 64
[strategy]
name = "fedit"
[local]
steps = 1
[server]
rounds = 1
loggers = []
"""
SITE = """[site]
name = "north"
[server]
address = "localhost:9"
ca = "keys/ca.pem"
key = "keys/server.pub"
[keys]
folder = "north"
[model]
id = "base"
[data]
train = "rows.jsonl"
client = "client"
[policy]
strategies = ["fedit"]
"""


def prepare(at: Path) -> None:
    """Fill the folder `at`, but for the run `done` and what is made of it."""
    (at / "run.toml").write_text(RUN)
    small_runs.causal(at / "base")
    _run_files(at)
    _models(at)
    _rows(at)
    _keys(at)
    _sites(at)


def spoil_runs(at: Path) -> None:
    """Copies of the run `done`, each with something wrong."""
    for name in ("no-state", "damaged"):
        shutil.copytree(at / "done", at / name)
    shutil.rmtree(at / "no-state" / "state")
    for generation in (at / "damaged" / "state").glob("*.fedft"):
        generation.write_bytes(b"nonsense")


def _run_files(at: Path) -> None:
    files = {
        "twice": RUN + "[local]\nsteps = 2\n",
        "key-twice": RUN.replace("steps = 1", "steps = 1\nsteps = 2"),
        "unquoted": RUN.replace('"base"', "base"),
        "backslash": RUN.replace('"base"', '"C:\\models\\base"'),
        "value": "model = 'base'\n",
        "outside": RUN.replace('"fedit"', '"os:system"'),
        "classes": RUN.replace(
            "[data]", 'task = "sequence-classification"\n[data]\ntext = "{prompt}"\nlabel = "client"'
        ),
    }
    for name, text in files.items():
        (at / f"{name}.toml").write_text(text)
    (at / "utf16.toml").write_bytes(RUN.encode("utf-16"))


def _models(at: Path) -> None:
    for name in ("model.gguf", "pytorch_model.bin", "adapter.pt"):
        (at / name).write_bytes(b"not read")
    (at / "empty").mkdir()
    for name in ("no-tokenizer", "lfs", "half"):
        shutil.copytree(at / "base", at / name)
    for file in (at / "no-tokenizer").glob("*token*"):
        file.unlink()
    (at / "lfs" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    weights = at / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    (at / "lora").mkdir()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "/gone/base", "r": 4, "target_modules": ["q_proj"]}
    (at / "lora" / "adapter_config.json").write_text(json.dumps(adapter))


def _rows(at: Path) -> None:
    good = small_runs.jsonl(at / "rows.jsonl", small_runs.rows(["north", "south"])).read_text()
    (at / "empty.jsonl").write_text("")
    (at / "broken.jsonl").write_text(good + '{"client": "north", "prompt": \n')
    (at / "semicolons.csv").write_text("client;prompt;response\nnorth;a;b\n")
    (at / "latin.csv").write_bytes("client,prompt,response\nnorth,caf\xe9,b\n".encode("latin-1"))
    (at / "rows.txt").write_text("hello\nworld\n")
    small_runs.jsonl(at / "elsewhere.jsonl", small_runs.rows(["east"]))


def _keys(at: Path) -> None:
    from cryptography import x509

    from fedft.security import certificates, new_keys, private_keys, roster

    new_keys.make_server(at / "nobody", ["localhost"])
    shutil.copytree(at / "nobody", at / "keys")
    roster.enrol(at / "keys" / "roster.toml", new_keys.make_site(at / "north", "north"))
    for name in ("expired", "foreign", "open", "garbled"):
        shutil.copytree(at / "keys", at / name)
    ca = x509.load_pem_x509_certificate((at / "keys" / "ca.pem").read_bytes())
    private = private_keys.load_ecdsa(at / "keys" / "ca.key"), private_keys.load_ecdsa(at / "keys" / "server.key")
    names = certificates.subjects(["localhost"])
    (at / "expired" / "server.pem").write_bytes(certificates.issue(ca, *private, names, 0))
    new_keys.make_server(at / "others", ["localhost"])
    shutil.copy(at / "others" / "server.pem", at / "foreign" / "server.pem")
    (at / "open" / "signing.key").chmod(0o644)
    (at / "garbled" / "signing.key").write_text("nonsense")


def _sites(at: Path) -> None:
    (at / "wrong.pem").write_text("nonsense")
    changes = {
        "no-name": ('name = "north"\n', ""),
        "no-keys": ('folder = "north"', 'folder = "none"'),
        "no-port": ("localhost:9", "localhost"),
        "no-ca": ("keys/ca.pem", "none.pem"),
        "wrong-ca": ("keys/ca.pem", "wrong.pem"),
        "no-rows": ("rows.jsonl", "none.jsonl"),
        "typo": ("[policy]\n", "[policy]\nmax_rnk = 4\n"),
        "strategy": ('"fedit"', '"fedits"'),
    }
    for name, (found, wrong) in changes.items():
        assert SITE.count(found) == 1
        (at / f"{name}.toml").write_text(SITE.replace(found, wrong))
