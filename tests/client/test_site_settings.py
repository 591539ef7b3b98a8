"""A site file says what it means, or what is wrong with it in one line."""

import shutil
import typing
from pathlib import Path

import pytest

from fedft.client import site_file, site_settings
from fedft.errors import ConfigError

EXAMPLE = Path(site_settings.__file__).with_name("site.toml")
PLAIN = """
[site]
name = "north"
[server]
address = "127.0.0.1:9092"
[model]
id = "stdlib-base"
[data]
train = "train.jsonl"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    for name in ("train.jsonl", "keys/ca.pem", "keys/server.pub", "keys/signing.key", "keys/node.key"):
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def loaded(folder: Path, text: str) -> site_settings.SiteConfig:
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return site_file.load(folder / "site.toml")


def test_the_example_loads_and_says_the_defaults(folder):
    found = site_file.load(Path(shutil.copy(EXAMPLE, folder)))
    assert found.policy == site_settings.Policy(strategies=["flora"])
    assert (found.local, found.model) == (site_settings.SiteLocal(), site_settings.SiteModel("stdlib-base"))
    assert found.keys.folder == str(folder / "keys")


def test_every_key_of_a_site_file_is_in_the_example():
    """As a value or commented out; so the example is the reference."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for name, kind in typing.get_type_hints(site_settings.SiteConfig).items():
        table = text.partition(f"[{name}]")[2].partition("\n[")[0]
        for key in kind.__dataclass_fields__.keys() - {"text", "label"}:
            assert f"\n{key} = " in table or f"\n# {key} = " in table, f"[{name}] {key}"


def test_paths_are_relative_to_the_file_and_become_absolute(folder, monkeypatch):
    monkeypatch.chdir("/")
    monkeypatch.setenv("WHERE", str(folder))
    found = loaded(folder, PLAIN.replace("train.jsonl", "$WHERE/train.jsonl"))
    assert found.data.train == str(folder / "train.jsonl")
    assert found.server.ca == str(folder / "keys" / "ca.pem")
    assert found.site.state == str(folder / "fedft-site")
    assert not (folder / "fedft-site").exists()


def test_nothing_is_allowed_unless_it_is_said(folder):
    assert loaded(folder, PLAIN).policy.strategies == []


def test_a_hub_id_and_the_built_in_names_are_no_paths(folder):
    found = loaded(folder, PLAIN.replace("stdlib-base", "owner/name").replace("train.jsonl", "stdlib-docstrings"))
    assert (found.model.id, found.data.train) == ("owner/name", "stdlib-docstrings")


@pytest.mark.parametrize("name", ["keys/ca.pem", "keys/server.pub", "keys/node.key", "keys/signing.key", "train.jsonl"])
def test_a_file_that_is_not_there_is_named_with_its_table_and_key(folder, name):
    (folder / name).unlink()
    table = {"ca.pem": r"\[server\] ca", "server.pub": r"\[server\] key", "train.jsonl": r"\[data\] train"}
    with pytest.raises(ConfigError, match=table.get(Path(name).name, r"\[keys\] folder")) as e:
        loaded(folder, PLAIN)
    assert "\n" not in str(e.value)
    assert Path(name).name in str(e.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[site]", "[sites]", r"no table \[sites\]; did you mean 'site'"),
        ("[site]\nname", "site", "site is a value, wanted a table"),
        ('name = "north"', "", r"\[site\] needs 'name'"),
        ('name = "north"', 'name = ""', "name of 1 to 64 bytes"),
        ('name = "north"', 'name = "a\\u001b[2J"', "printable"),
        ('name = "north"', f'name = "{"é" * 33}"', "name of 1 to 64 bytes"),
        ("127.0.0.1:9092", "127.0.0.1", "address is '127.0.0.1', wanted host:port"),
        ("127.0.0.1:9092", "host:99999", "wanted host:port"),
        ("127.0.0.1:9092", "https://host:1", "wanted host:port"),
        ("stdlib-base", "no/such/model", r"\[model\] id = 'no/such/model': wanted a model folder or a hub id"),
        ("train.jsonl", "$NO_SUCH_VARIABLE/x", "variable NO_SUCH_VARIABLE is not set"),
        ("train.jsonl", "absent.csv", r"\[data\] train = 'absent.csv': wanted a file"),
        ('"train.jsonl"', '"train.jsonl"\nvalue = "x"', "value needs client"),
        ('"train.jsonl"', '"train.jsonl"\nholdout = 0.2', r"\[data\] has no 'holdout'"),
        ("[data]", '[policy]\nstrategies = ["flra"]\n[data]', "no strategy 'flra'.*did you mean 'flora'"),
        ("[data]", '[policy]\nplugins = ["lorra"]\n[data]', "transform 'lorra' is installed.*did you mean .lora"),
        ("[data]", '[policy]\ncodecs = ["int9"]\n[data]', "codec is 'int9'.*did you mean"),
        ("[data]", '[policy]\nbase = ["abc"]\n[data]', "base holds 'abc'"),
        ("[data]", "[policy]\nmax_steps = 0\n[data]", "max_steps >= 1"),
        ("[data]", "[policy]\nmax_learning_rate = nan\n[data]", "max_learning_rate >= 0"),
        ("[data]", "[policy]\nmax_rank = true\n[data]", "max_rank is True, wanted int"),
        ("[data]", "[local]\nthreads = 0\n[data]", "threads >= 1"),
        ("[data]", "[local]\nmax_models = 0\n[data]", "max_models >= 1"),
        ("[data]", '[local]\ndevice_lock = "none/lock"\n[data]', "device_lock = 'none/lock': wanted a file"),
        ("[data]", '[local]\ndevice_lock = "$NONE/lock"\n[data]', "the variable NONE is not set"),
        ("[data]", "[data", "not valid TOML"),
    ],
)
def test_a_mistake_is_one_line(folder, old, new, said):
    assert old in PLAIN
    with pytest.raises(ConfigError, match=said) as e:
        loaded(folder, PLAIN.replace(old, new))
    assert "\n" not in str(e.value)


def test_a_lock_of_the_device_is_a_file_that_need_not_be_there_yet(folder):
    assert loaded(folder, PLAIN).local.device_lock == ""
    found = loaded(folder, PLAIN.replace("[data]", '[local]\ndevice_lock = "gpu0"\n[data]'))
    assert found.local.device_lock == str(folder / "gpu0")


def test_a_file_that_is_none_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such site file"):
        site_file.load(tmp_path / "site.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        site_file.load(tmp_path)


def test_addresses_may_be_names_or_ip_6(folder):
    for address in ("fl.example.org:1", "[::1]:9092"):
        assert loaded(folder, PLAIN.replace("127.0.0.1:9092", address)).server.address == address


def test_the_form_of_conversations_is_checked_and_its_template_read(folder):
    (folder / "chat.jinja").write_text("{{ messages }}")
    said = 'train = "train.jsonl"\nmessages = "talk"\nchat_template = "{}"'
    found = loaded(folder, PLAIN.replace('train = "train.jsonl"', said.format("chat.jinja"))).data
    assert (found.messages, found.chat_template) == ("talk", "{{ messages }}")
    for wrong, line in {
        said.format("other.jinja"): r"site.toml: \[data\] chat_template = 'other.jinja': no such file",
        said.format("chat.jinja") + '\nprompt = "{q}"': r"\[data\] prompt or response and messages: a record",
        'train = "train.jsonl"\nresponse = "{{a}}"': r"\[data\] response = '{{a}}' names no field; .*'{a}'",
    }.items():
        with pytest.raises(ConfigError, match=line):
            loaded(folder, PLAIN.replace('train = "train.jsonl"', wrong))


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ("[policy]\nmax_epsilon = nan", "max_epsilon > 0, got nan"),
        ("[policy]\nmax_epsilon = 0.0", "max_epsilon > 0"),
        ("[policy]\ndelta = 1.5", "<= delta <= 1"),
        ("[policy]\ndelta = nan", "delta > 0, got nan"),
        ("[policy]\nmin_cohort = 2", "min_cohort >= 3"),
        ("[policy]\nrequire = ['example_dp']", "require"),
        ("[privacy]\nrows = 0", "rows >= 1"),
        ("[keys]\nroster = 'none.toml'", "roster = 'none.toml': wanted a file"),
    ],
)
def test_what_a_site_says_of_privacy_is_checked(folder, more, wanted):
    with pytest.raises(ConfigError) as e:
        loaded(folder, f"{PLAIN}\n{more}\n")
    assert wanted in str(e.value)
    assert "\n" not in str(e.value)


def test_what_a_site_says_of_privacy_is_taken(folder):
    (folder / "roster.toml").write_text("", encoding="utf-8")
    said = "[policy]\nrequire = ['secagg', 'zo-dp']\nmin_cohort = 5\nmax_epsilon = 8.0\ndelta = 1e-6\n"
    found = loaded(folder, f"{PLAIN}\n[keys]\nroster = 'roster.toml'\n{said}[privacy]\nrows = 4000\n")
    assert (found.policy.require, found.policy.min_cohort) == (["secagg", "zo-dp"], 5)
    assert (found.policy.max_epsilon, found.policy.delta, found.privacy.rows) == (8.0, 1e-6, 4000)
    assert found.keys.roster == str(folder / "roster.toml")
