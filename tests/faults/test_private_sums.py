"""A run with noise at the server is killed at every call of its disk: nothing is released that was not charged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Disk, Killed, Odds, World, installed
from private_runs import Run
from sampled_kills import sample

from fedft import durable
from fedft.errors import StateDamaged
from fedft.privacy import keyed_stream, spent_budget
from fedft.server import privacy_ledger
from fedft.server.checkpoint import Store

NAMES = ("anna", "bert")
ROUNDS = 3
FRESH = {"noise": "os"}


def run_in(folder: Path, privacy: dict[str, str] | None = None, **more: int) -> Run:
    return Run(folder, privacy, name="ffa_lora", names=NAMES, rounds=ROUNDS, deployed=True, **more)


def killed_at(call: int, folder: Path, privacy: dict[str, str] | None = None) -> bool:
    """Whether the run in a folder was killed at this call of the disk; else it has come to its end."""
    world = World(call, Odds())
    world.kill_at = call
    with installed(world, Disk(world, lambda actor, path: None)):
        try:
            run_in(folder, privacy).digest()
        except Killed:
            return True
    return False


def charged(folder: Path) -> set[int]:
    """The rounds of a ledger on disk."""
    body = durable.verified(folder / "state" / "ledger.fedft")
    return set() if body is None else spent_budget.read(body).rounds()


def version(folder: Path) -> int:
    """Of the newest state on disk; -1 for none."""
    found = Store(folder / "state").latest(recover=False)
    return found[0].version if found else -1


@pytest.mark.parametrize(
    ("cohort", "first", "stride"),
    [
        ("asked", 5, 17),
        ("poisson", 13, 17),
        pytest.param("asked", *sample(2, 7), marks=pytest.mark.slow),
        pytest.param("poisson", *sample(1, 7), marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_call_of_the_disk_costs_nothing_and_hides_nothing(
    tmp_path: Path, cohort: str, first: int, stride: int
) -> None:
    """What was released was charged; the end is the undisturbed run's; nothing is paid twice; no key is left."""
    said, call = {"cohort": cohort}, first
    wanted = run_in(tmp_path / "whole", said).digest()
    while killed_at(call, folder := tmp_path / str(call), said):
        assert charged(folder) >= set(range(version(folder)))
        again = run_in(folder, said)
        assert again.digest() == wanted
        assert [c.round for c in again.ledger.charges] == [0, 1, 2]
        left = [p.name for p in (folder / "state").iterdir()]
        assert not [name for name in left if name.startswith(("noise-", "drawn-"))]
        shutil.rmtree(folder)
        call += stride
    assert call > 60, "the disk was called too rarely for this to be a test"


@pytest.mark.parametrize(("first", "stride"), [(4, 12), pytest.param(*sample(2, 3), marks=pytest.mark.slow)])
def test_fresh_noise_of_a_set_that_stood_before_a_kill_is_the_same_after_it(
    tmp_path: Path, first: int, stride: int
) -> None:
    """Its key is on the disk: two who go on from there come to the same state, and nobody is asked for it again."""
    tried, call = 0, first
    while killed_at(call, folder := tmp_path / str(call), FRESH):
        number = version(folder)
        if number >= 0 and (folder / "state" / f"noise-{number:08d}.key").exists():
            shutil.copytree(folder, other := tmp_path / f"{call}-other")
            runs = [run_in(f, FRESH) for f in (folder, other)]
            for run in runs:
                run.digest()
                assert not any(number in site.trained for site in run.sites.values())
                assert [c.round for c in run.ledger.charges] == [0, 1, 2]
            digests = [run.metrics.lines[number + 1]["state_digest"] for run in runs]
            assert digests[0] == digests[1]
            tried += 1
        call += stride
    assert tried > 9 // stride, "too few of the kills came behind a key for this to be a test"


def test_another_set_has_another_key_and_is_charged_again(tmp_path: Path) -> None:
    """The journal is lost between key and state: whoever answers anew makes another set."""

    def fails(*about: object) -> None:
        raise Killed

    run = run_in(tmp_path, FRESH)
    run.federation.store.save = fails  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run.digest()
    assert charged(tmp_path) == set()
    run = run_in(tmp_path, FRESH)
    real, calls = run.federation.store.save, [0]

    def fails_at_second(*about: object) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise Killed
        real(*about)  # type: ignore[arg-type]

    run.federation.store.save = fails_at_second  # type: ignore[method-assign,assignment]
    with pytest.raises(Killed):
        run.digest()
    assert charged(tmp_path) == {0}
    for journalled in (tmp_path / "state" / "journal" / "00000000").glob("u-*"):
        journalled.unlink()
    again = run_in(tmp_path, FRESH)
    again.digest()
    first = [c for c in again.ledger.charges if c.round == 0]
    assert [c.attempt for c in first] == [0, 1]
    assert len({c.key for c in first}) == len({c.set for c in first}) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def forgotten(path: Path) -> None:
    """As if it came from a backup of before the last round."""
    ledger = spent_budget.read(durable.verified(path) or b"")
    durable.commit(path, spent_budget.Ledger(ledger.header, ledger.charges[:-1]).to_bytes())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(cut, "cannot be read or was altered"), (Path.unlink, "is missing"), (forgotten, "round 2 led to the state")],
)
def test_a_ledger_that_knows_less_than_the_state_ends_the_run(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    run_in(tmp_path).digest()
    spoil(tmp_path / "state" / "ledger.fedft")
    with pytest.raises(StateDamaged, match=said) as e:
        run_in(tmp_path).digest()
    assert e.value.exit_code == 65
    assert "\n" not in str(e.value)


def test_a_key_is_readable_by_nobody_else_and_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(privacy_ledger, "new_key", lambda: drawn.append(keyed_stream.new_key()) or drawn[-1])
    modes = set()
    real = durable.commit

    def looks(path: Path, *parts: bytes, **how: object) -> None:
        real(path, *parts, **how)  # type: ignore[arg-type]
        if path.name.startswith("noise-"):
            modes.add(path.stat().st_mode & 0o777)

    monkeypatch.setattr(durable, "commit", looks)
    run_in(tmp_path, FRESH).digest()
    assert modes == {0o600}
    assert len(set(drawn)) == ROUNDS


@pytest.mark.parametrize(("first", "stride"), [(7, 23), pytest.param(*sample(2, 5), marks=pytest.mark.slow)])
def test_a_kill_in_a_noisy_evaluation_measures_the_same_and_pays_once(tmp_path: Path, first: int, stride: int) -> None:
    """And leaves no key, also behind the last line, after which nothing is measured any more."""
    said, call = {"evaluate": "noisy"}, first
    whole = run_in(tmp_path / "whole", said)
    whole.digest()
    wanted = [(line["loss"], line["accuracy"]) for line in whole.metrics.lines]
    while killed_at(call, folder := tmp_path / str(call), said):
        again = run_in(folder, said)
        again.digest()
        assert [(line["loss"], line["accuracy"]) for line in again.metrics.lines] == wanted
        assert len(again.ledger.charges) == len(whole.ledger.charges) == ROUNDS + 2 * (ROUNDS + 1)
        assert not list((folder / "state").glob("noise-*"))
        shutil.rmtree(folder)
        call += stride
    assert call > 60, "the disk was called too rarely for this to be a test"
