"""What a site exports from its own disk is the model that was evaluated there, by tools that know nothing of fedft."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deployed import Direct
from exported_models import loss_of

from fedft import run_file
from fedft.cli import main
from fedft.client import allowed_jobs, app, own_model, site_file
from fedft.client.disk import SiteDisk
from fedft.client.held_letters import Door, HeldLetters
from fedft.client.requests import Responder
from fedft.client.resident_models import ResidentModels
from fedft.errors import ConfigError
from fedft.security import new_keys, private_keys
from fedft.server import app as server_app
from fedft.simulations import run as runs
from fedft.simulations import split_for_sites

CLOSE = 1e-4
OPTIONS = {
    "fedkseed": ["strategy.K=64", "local.learning_rate=1e-3", "local.steps=10"],
    "flora": ["clients.rank=[2, 4]"],
}
SMALL = ["local.steps=3", "local.batch_size=4", "server.rounds=2", "data.clients=2", "data.max_length=48"]
SLOW = ("fedit", "ffa_lora")  # as flora, but for the rank


class Ended:
    """A deployment whose run has ended: the server's folder, and the sites' files, in one process."""

    def __init__(self, folder: Path, base: Path, strategy: str, *more: str) -> None:
        sets = [f"model.id='{base}'", f"strategy.name={strategy}", "eval.max_rows=4", "server.loggers=[]", *SMALL]
        self.config = run_file.load(runs.QUICKSTART, [*sets, *OPTIONS.get(strategy, ["clients.rank=4"]), *more])
        keys, self.out = folder / "keys", folder / "out"
        new_keys.make_server(keys, ["127.0.0.1"], 30)
        files = split_for_sites.split(self.config, folder / "sites", server="127.0.0.1:9443", keys=keys)
        self.files = {file.parent.name: file for file in files}
        self.sites = {name: SimpleNamespace(responder=self._responder(file)) for name, file in self.files.items()}
        with pytest.MonkeyPatch.context() as m:
            m.setattr(server_app, "link_of", lambda *_, came: Direct(self.sites))  # type: ignore[arg-type]
            server_app.serve(self.config, server_app.Place(keys, ("127.0.0.1", 9443)), self.out)
        self.line: dict[str, Any] = json.loads((self.out / "metrics.jsonl").read_text().splitlines()[-1])

    @staticmethod
    def _responder(file: Path) -> Responder:
        site = site_file.load(file)
        own = Path(site.keys.folder)
        signing, server = (
            private_keys.load_signing(own / "signing.key"),
            private_keys.load_public(Path(site.server.key)),
        )
        state, check = SiteDisk(Path(site.site.state)), partial(allowed_jobs.check_plan, policy=site.policy)
        held, joiner = HeldLetters(Door(site, file).closed), app.Joiner(site, state, ResidentModels())
        return Responder(site.site.name, signing, server, state, joiner, check, held)

    def rows(self, name: str) -> list[Any]:
        """The site's rows on which it was measured."""
        client = self.sites[name].responder.runs.loaded(run_of(self, name))
        assert client is not None
        return list(client.test_rows[:4])


def run_of(ended: Ended, name: str) -> str:
    """The run's identifier, as the site knows it."""
    state = Path(site_file.load(ended.files[name]).site.state)
    (file,) = [p for p in (state / "runs").glob("*.json") if "." not in p.stem]
    return file.stem


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW))
        for s in ("flora", "fedit", "ffa_lora", "fedsa_lora", "fedkseed")
    ],
)
def test_the_exported_model_is_the_one_that_was_evaluated(tiny_base: Path, tmp_path: Path, strategy: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = Ended(tmp_path, tiny_base, strategy)
    losses, merged, adapted = {}, {}, {}
    for name, file in run.files.items():
        site, rows, to = site_file.load(file), run.rows(name), tmp_path / "exported" / name
        losses[name] = run.line["evaluation"][name]["loss"]
        done = own_model.export(site, run_of(run, name), to / "plain")
        assert (done.rounds, done.personal) == (2, strategy == "fedsa_lora")
        own_model.export(site, done.run, to / "merged", merged=True)
        merged[name] = loss_of(AutoModelForCausalLM.from_pretrained(to / "merged"), rows)
        if done.kind == "adapter":
            base = AutoModelForCausalLM.from_pretrained(tiny_base)
            adapted[name] = loss_of(PeftModel.from_pretrained(base, str(to / "plain")), rows)
        weights = {"adapter": "adapter_model.safetensors", "delta": "delta.safetensors"}[done.kind]
        ours, theirs = ((folder / weights).read_bytes() for folder in (to / "plain", run.out / "model"))
        assert (ours == theirs) == (not done.personal), "the server's model/, byte for byte, unless it is personal"
    assert merged == pytest.approx(losses, abs=CLOSE)
    assert adapted == (pytest.approx(losses, abs=CLOSE) if strategy != "fedkseed" else {})
    assert len(losses) == 2


@pytest.fixture(scope="module")
def ended(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One whose last state no site has seen: nobody evaluates."""
    return Ended(tmp_path_factory.mktemp("ended"), tiny_base, "fedit", "data.holdout=0.0")


def test_a_site_that_did_not_get_the_last_state_says_which_one_it_has(ended: Ended, tmp_path: Path) -> None:
    name = next(iter(ended.files))
    done = own_model.export(site_file.load(ended.files[name]), run_of(ended, name), tmp_path / "to")
    assert done.rounds == 1, "trained in two rounds: it was sent the states of versions 0 and 1"
    assert (tmp_path / "to" / "adapter_config.json").exists()


def test_the_command_says_what_it_wrote_and_mistakes_in_a_line(
    ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(iter(ended.files))
    file, known = str(ended.files[name]), run_of(ended, name)

    def fedft(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fedft", "site", "export", file, *args])
        with pytest.raises(SystemExit) as e:
            main.main()
        return int(e.value.code or 0)

    assert fedft("--run", known[:8], "--to", str(tmp_path / "to")) == 0
    out = capsys.readouterr().out
    assert f"adapter written to {tmp_path / 'to'}: run {known} after 1 round" in out
    assert "the last state that this site received" in out
    for args in (["--run", known, "--to", str(tmp_path / "to")], ["--run", "zz", "--to", str(tmp_path / "new")]):
        assert fedft(*args) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_state_that_is_lost_or_of_another_base_is_a_line(ended: Ended, tmp_path: Path) -> None:
    name = list(ended.files)[1]
    site, known = site_file.load(ended.files[name]), run_of(ended, name)
    (file,) = Path(site.site.state).glob("state*.fedft")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match="holds no state of it that can be read"):
        own_model.export(site, known, tmp_path / "to")
    file.write_bytes(whole)
    assert own_model.export(site, known, tmp_path / "to").rounds == 1
