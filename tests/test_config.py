"""Run files: what is accepted, and the one line that says what is not."""

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fedft import config, run_file, strategies
from fedft.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[local]\nlearning_rte = 1\n", "run.toml: [local] has no 'learning_rte'; did you mean 'learning_rate'?"),
        ("[locale]\n", "run.toml: no table [locale]; did you mean 'local'?"),
        ("local = 3\n", "run.toml: local is a value, wanted a table [local]"),
        ("[local]\nsteps = 'ten'\n", "run.toml: [local] steps is 'ten', wanted int"),
        ("[local]\nsteps = true\n", "run.toml: [local] steps is True, wanted int"),
        ("[local]\nsteps = 0\n", "run.toml: expected [local] steps >= 1, got 0"),
        ("[clients]\nrank = 0\n", "run.toml: expected [clients] rank >= 1, got 0"),
        ("[clients]\nrank = [4, 0]\n", "run.toml: expected [clients] rank >= 1, got 0"),
        ("[clients]\nrank = []\n", "run.toml: [clients] rank: expected at least one rank, got an empty list"),
        ("[model]\ntask = 'causal'\n", "did you mean 'causal-lm'?"),
        ("[codec]\nup = 'int9'\n", "did you mean 'int8'?"),
        ("[server]\nquorum = 1.5\n", "expected 0 <= [server] quorum <= 1, got 1.5"),
        ("[model]\ntask = 'sequence-classification'\n", "needs [model] labels, at least two"),
        ("[local\n", "run.toml: not valid TOML"),
        ("[local]\nmax_grad_norm = 0\n", "expected [local] max_grad_norm > 0, got 0.0"),
        ("[local]\nmomentum = -0.1\n", "expected [local] momentum >= 0, got -0.1"),
        ("[model]\nbase_bits = 3\n", "run.toml: [model] base_bits is 3, wanted 4 or 8"),
        ("[model]\nload_in_4bit = true\n", "run.toml: [model] has no 'load_in_4bit'; wanted [model] base_bits, 4 or 8"),
        ("[model]\nlora_alpha = 0.0\n", "expected [model] lora_alpha > 0, got 0.0"),
        ("[model]\ntargets = []\n", "targets is [], wanted 'all-linear' or name endings"),
        ("[model]\ntargets = ''\n", "targets is '', wanted"),
        ("[data]\nmax_prompt = 0\n", "expected [data] max_prompt >= 1, got 0"),
        ("[data]\nmax_length = 1\n", "expected [data] max_length >= 2, got 1"),
        ("[server]\nseed = -1\n", "seed <= 9007199254740991, got -1"),
        ("[server]\nseed = 9007199254740992\n", "seed <= 9007199254740991, got 9007199254740992"),
        ("[server]\ndeadline_s = 0\n", "expected [server] deadline_s > 0, got 0.0"),
        ("[server]\ngrace_s = -1\n", "expected [server] grace_s >= 0, got -1.0"),
        ("[limits]\nmax_norm = nan\n", "expected [limits] max_norm > 0, got nan"),
        ("[limits]\nmax_bytes = 0\n", "expected [limits] max_bytes >= 1, got 0"),
        ("[limits]\nquarantine_after = 0\n", "expected [limits] quarantine_after >= 1, got 0"),
        ("[limits]\nmax_num_examples = 0\n", "expected [limits] max_num_examples >= 1, got 0"),
        ("[eval]\nmax_rows = 0\n", "expected [eval] max_rows >= 1, got 0"),
        ("[eval]\ngenerate_tokens = 0\n", "expected [eval] generate_tokens >= 1, got 0"),
        ("[model]\ntask = 'sequence-classification'\nlabels = ['a', 'a']\n", "labels that are distinct"),
        (
            "[model]\ntask = 'sequence-classification'\nlabels = ['a', 'b']\n[eval]\nrouge = true\n",
            "[eval] rouge compares generated text",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_file_table_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        run_file.load(written(tmp_path, text))
    assert said in str(e.value).replace(str(tmp_path) + "/", "")
    assert "\n" not in str(e.value)


def test_keys_of_other_tools_are_none_of_ours_and_lead_to_one_of_ours() -> None:
    ours = {
        t: {f.name for f in fields(getattr(config.RunConfig(), t))} for t in (f.name for f in fields(config.RunConfig))
    }
    for key, there in config.OTHER_TOOLS.items():
        assert not any(key in keys for keys in ours.values())
        found = re.search(r"\[(\w+)\] (\w+)", there)
        assert found
        assert found[2] in ours[found[1]]


def test_a_file_of_another_editor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf[local]\nsteps = 3\n")
    assert run_file.load(path).local.steps == 3


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run file"):
        run_file.load(tmp_path / "none.toml")


def test_an_override_wins_over_the_file_and_bare_words_are_strings(tmp_path: Path) -> None:
    path = written(tmp_path, "[local]\nsteps = 3\n[strategy]\nname = 'flora'\n")
    c = run_file.load(path, ["local.steps=7", "strategy.name=fedit", "local.learning_rate=1"])
    assert (c.local.steps, c.strategy.name, c.local.learning_rate) == (7, "fedit", 1.0)


@pytest.mark.parametrize("bad", ["steps=3", "local.steps", "=3", "local.steps.deep=1"])
def test_an_override_that_is_none_is_refused(tmp_path: Path, bad: str) -> None:
    path = written(tmp_path, "[local]\nsteps = 3\n")
    with pytest.raises(ConfigError):
        run_file.load(path, [bad])


def test_a_table_named_for_a_strategy_holds_when_that_strategy_runs(tmp_path: Path) -> None:
    text = (
        "[local]\nsteps = 3\n[local.fedkseed]\nsteps = 200\n[strategy]\nname = 'fedit'\n[strategy.fedkseed]\nK = 64\n"
    )
    path = written(tmp_path, text)
    assert run_file.load(path).local.steps == 3
    assert run_file.load(path).strategy.options == {}
    seeds = run_file.load(path, ["strategy.name=fedkseed"])
    assert (seeds.local.steps, seeds.strategy.options) == (200, {"K": 64})


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    import tomli_w

    c = run_file.from_dict(
        {"strategy": {"name": "fedkseed", "K": 8}, "clients": {"rank": [1, 2]}, "data": {"clients": 3}}
    )
    assert run_file.load(written(tmp_path, tomli_w.dumps(c.to_dict()))) == c


def test_relative_data_paths_mean_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    c = run_file.load(written(tmp_path, "[data]\ntrain = 'rows.jsonl'\n"))
    assert Path(c.data.train) == tmp_path / "rows.jsonl"


def test_paths_of_the_working_folder_are_kept_absolute_and_other_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("owner/model", "stdlib-base"):
        (tmp_path / "here" / name).mkdir(parents=True)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path / "here")
    path = written(tmp_path, "")
    c = run_file.load(path, ["model.id=owner/model", "data.train=../rows.jsonl", "data.test=owner/data:test"])
    assert c.model.id == str(tmp_path / "here" / "owner" / "model")
    assert (c.data.train, c.data.test) == (str(tmp_path / "rows.jsonl"), "owner/data:test")
    assert run_file.load(path, ["model.id=stdlib-base"]).model.id == "stdlib-base"


PLUGIN = """
from typing import TYPE_CHECKING
from fedft.strategies.fedit import fedit
if TYPE_CHECKING:
    from fedft import Recipe
def typed(*, n: int = 1, x: float = 1.0, names: list[str] | None = None) -> "Recipe":
    assert type(x) is float
    return fedit()
def later(*, x: "Recipe" = None) -> "Recipe": return fedit()
def raises() -> "Recipe": return {}["no such"]
def unsaid(): raise AssertionError("called")
value = 3
"""


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fedkseed", {"pro": "False"}, "[strategy] fedkseed: pro is 'False', wanted bool"),
        ("fedkseed", {"K": 10.5}, "[strategy] fedkseed: K is 10.5, wanted int"),
        ("fedkseed", {"K": "abc"}, "[strategy] fedkseed: K is 'abc', wanted int"),
        ("fedkseed", {"K": True}, "[strategy] fedkseed: K is True, wanted int"),
        ("fedkseed", {"epsilon": True}, "[strategy] fedkseed: epsilon is True, wanted float"),
        ("fedkseed", {"space": "ful"}, "[strategy] fedkseed: space is 'ful', wanted 'full' or 'lora'"),
        ("fedkseed", {"table": "t"}, "table is 't', but Directions cannot be written in a run file; leave it out"),
        ("options_of:typed", {"names": ["a", 1]}, "names is 1, wanted str"),
        ("options_of:value", {}, "[strategy] options_of:value is a int, wanted a factory"),
        ("options_of:raises", {}, "[strategy] options_of:raises: KeyError: 'no such'"),
        ("options_of:none", {}, "cannot load options_of:none"),
        ("options_of:unsaid", {}, "options_of:unsaid is not called: it says that it returns nothing, wanted Recipe"),
        ("os:system", {}, "os:system is not called"),
        ("wrong_syntax:make", {}, "cannot load wrong_syntax:make: SyntaxError: "),
    ],
)
def test_an_option_of_the_wrong_type_and_a_broken_factory_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: Any, name: str, options: dict[str, Any], said: str
) -> None:
    allow(name)
    (tmp_path / "options_of.py").write_text(PLUGIN)
    (tmp_path / "wrong_syntax.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "options_of", raising=False)
    with pytest.raises(ConfigError) as e:
        strategies.make(name, options)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_options_of_the_right_type_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: Any) -> None:
    allow("options_of:typed", "options_of:later")
    (tmp_path / "options_of.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "options_of", raising=False)
    assert strategies.make("options_of:typed", {"x": 2, "n": 3, "names": ["a"]}).name == "fedit"
    assert strategies.make("options_of:later", {"x": "unchecked"}).name == "fedit"
    assert strategies.make("fedkseed", {"K": 8, "table": None, "space": "lora", "epsilon": 1}).name == "fedkseed"


def test_the_command_line_wins_over_a_strategys_own_table(tmp_path: Path) -> None:
    path = written(tmp_path, "[clients]\nrank = 4\n[clients.fedit]\nrank = 8\n[strategy]\nname = 'fedit'\n")
    assert run_file.load(path).clients.rank == 8
    assert run_file.load(path, ["clients.rank=[2, 3]"]).clients.rank == [2, 3]


def test_paths_take_variables_and_say_which_one_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    c = run_file.load(written(tmp_path, "[data]\ntrain = '${MY_DATA}/rows.jsonl'\n"))
    assert c.data.train == str(tmp_path / "rows.jsonl")
    monkeypatch.delenv("MY_DATA")
    with pytest.raises(ConfigError, match="the variable MY_DATA is not set"):
        run_file.load(tmp_path / "run.toml")


@pytest.mark.parametrize("name", ["fedkseed", "mezo", "ferret", "fedavg"])
def test_packed_weights_are_refused_by_what_writes_them_and_taken_by_adapters(name):
    strategies.of(run_file.from_dict({"model": {"base_bits": 4}, "strategy": {"name": name, "space": "lora"}}))
    with pytest.raises(
        ConfigError, match=rf"\[model\] base_bits = 4: {name} writes all weights of the base"
    ) as refused:
        strategies.of(run_file.from_dict({"model": {"base_bits": 4}, "strategy": {"name": name}}))
    assert "\n" not in str(refused.value)
