"""A name has one meaning or is refused; a package's codec is found by its name, and only where the operator says it."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedft import run_file
from fedft.compression import codec_names
from fedft.compression.codec_names import parse
from fedft.compression.plain import FP32
from fedft.errors import RejectedUpdate
from fedft.suites.codecs import codec_contract
from fedft.update import Plan, TensorSpec, Update
from fedft.wire import messages, table

EXAMPLE = Path(__file__).parents[1] / "plugin_example"
RUN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("said", "canonical"),
    [
        ("int8", "int8"),
        (" topk:0.1 | int8 ", "topk:0.1|int8"),
        ("topk:1e-2|int4", "topk:0.01|int4"),
        ("ternary:0.50", "topk:0.5|ternary"),
        ("fixed:20", "fixed:20"),
        ("fixed:20:1", "fixed:20"),
        ("fixed:20:0.25", "fixed:20:0.25"),
    ],
)
def test_a_codec_has_one_canonical_name(said, canonical):
    assert parse(said).name == canonical
    assert parse(canonical) == parse(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int9", "did you mean 'int8'?"),
        ("", "wanted one of"),
        ("|int8", "selection is '', wanted one of randk, topk"),
        ("topk:0.1", "codec is 'topk:0.1', wanted one of"),
        ("mine:mine", "wanted the name of an installed one: sites read its bytes as well"),
        ("fp16:mine", "wanted one of"),
        ("int8 | topk:0.1", "did you mean|wanted one of"),
        ("topk:0.1 | int8 | int4", "wanted one of"),
        ("topk|int8", "wanted topk:Q with Q the share of entries kept, 0 < Q <= 1"),
        ("topk:0|int8", "0 < Q <= 1"),
        ("topk:1.5|int8", "0 < Q <= 1"),
        ("topk:nan|int8", "0 < Q <= 1"),
        ("topk:10%|int8", "0 < Q <= 1"),
        ("ternary:2", "0 < Q <= 1"),
        ("randk:1|int8", "keeps everything; wanted 'int8'"),
        ("randk:0.5|ternary", "which entries are 0"),
        ("topk:0.5|fixed:16", "fixed is for sums over clients"),
        ("fixed", "BITS from 2 to 24"),
        ("fixed:32", "BITS from 2 to 24"),
        ("fixed:16:3", "CLIP a power of two"),
        ("fixed:16:", "CLIP a power of two"),
        ("topk:0.1|ternary:0.1", "wanted one of"),
    ],
)
def test_names_that_make_no_sense_are_refused_in_one_line(name, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?").replace("|w", "|w")) as e:
        parse(name)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 200


def test_codecs_are_listed_with_what_they_promise() -> None:
    told = codec_names.codecs()
    assert told["fp32"].startswith("plain, linear, exact, unbiased, idempotent")
    assert "about 3.4 bits" in told["int4"]
    assert set(codec_names.EXAMPLES) == told.keys()


# From outside


def _forget() -> None:
    codec_names._known.clear()
    for cache in (codec_names._parsed, table.form):
        cache.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package `fedft-signs` with its metadata, as after `pip install`."""
    info = tmp_path / "fedft_signs-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedft-signs\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[fedft.codecs]\nsigns = signs:signs\nint8 = signs:signs\n")
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    yield
    _forget()
    sys.modules.pop("signs", None)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["signs", "signs:0.5", "topk:0.2 | signs"])
def test_a_codec_from_outside_keeps_the_contract(name: str) -> None:
    codec_contract(name)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["signs:0.50", "topk:0.25|signs:0.5", "randk:0.5|signs"])
def test_it_travels_in_updates_and_plans(name: str) -> None:
    parse(name)
    delta = {"m.lora_A": torch.randn(4, 300), "v": torch.tensor([1.0, 0, -3])}
    spec = {n: TensorSpec(tuple(t.shape)) for n, t in delta.items()}
    seen = messages.roundtrip(delta, name, 7)
    got = messages.decode_update(messages.encode_update(Update(delta, 1), name, 7), spec, name).delta
    said = messages.decode_plan(messages.encode_plan(Plan(RUN, 1, 1, tensors=delta), name, 7), max_bytes=5000).tensors
    assert all(torch.equal(got[n], seen[n]) and torch.equal(said[n], seen[n]) for n in delta)
    assert seen["m.lora_A"].abs().unique().numel() == (1 if name == "signs:0.50" else 2)


@pytest.mark.usefixtures("installed")
def test_a_run_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[codec]\nup = "topk:0.1 | signs"\ndown = "delta | signs:0.5"\n')
    config = run_file.load(tmp_path / "run.toml")
    assert (config.codec.plans, config.codec.changes) == ("fp32", "signs:0.5")
    assert parse(config.codec.up).name == "topk:0.1|signs"
    assert codec_names.codecs()["signs"] == "idempotent, coarse, behind a selection; about 1 bits per parameter"


@pytest.mark.usefixtures("installed")
def test_a_name_in_a_message_imports_nothing() -> None:
    delta = {"w": torch.ones(3)}
    data = messages.encode_plan(Plan(RUN, 1, 1, tensors=delta), "int4").replace(b'"int4"', b'"signs"')
    data = data[:9] + (int.from_bytes(data[9:13], "little") + 1).to_bytes(4, "little") + data[13:]
    for call in (
        lambda: messages.decode_plan(data, max_bytes=1000),
        lambda: codec_names.received("signs"),
        lambda: codec_names.received("topk:0.1|signs"),
        lambda: messages.encode_plan(Plan(RUN, 1, 1, tensors=delta), "signs"),
    ):
        with pytest.raises((RejectedUpdate, ValueError)):
            call()
    assert "signs" not in sys.modules
    parse("signs")
    assert codec_names.received("topk:0.1|signs").name == "topk:0.1|signs"  # from here on it is known


@pytest.mark.usefixtures("installed")
def test_nobody_takes_the_name_of_a_codec_that_is_built_in() -> None:
    assert parse("int8").plain
    assert "signs" not in sys.modules


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "said"),
    [("signs:2", "signs:signs: signs:2: wanted signs:F"), ("sign", "did you mean 'signs'?")],
)
def test_what_goes_wrong_in_it_is_one_line(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?")) as e:
        parse(name)
    assert "\n" not in str(e.value)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("made", [None, FP32, replace(FP32, name="signs:A B"), replace(FP32, name="signs|int8")])
def test_what_a_factory_returns_has_to_be_a_codec_of_its_name(made: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import signs

    monkeypatch.setattr(signs, "signs", lambda arguments: made)
    with pytest.raises(ValueError, match=r"wanted one called signs\[:arguments\]"):
        parse("signs")
