"""Many clients on one machine: the server's loop, the clients' training and the codec of a deployment, in one process
or with workers (`fleet`).

    run = fedft.simulate()                           the built-in quickstart
    run = fedft.simulate("run.toml", out="runs/a")   a run file
    run.summary["final"]["loss"], run.model

The run folder is written as the run goes: `config.toml`, `metrics.jsonl`, `state/`, and at the end `model/`,
`summary.json`; those of `[server] loggers` write beside them. A run that was interrupted or killed continues with
`resume=True`.
"""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedft import allowed_code
from fedft import run_file as configs
from fedft.carriers.interface import Post
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.reports.observers import Observers
from fedft.reports.terminal import Progress
from fedft.server import budget, disk_need, foreseen_privacy, message_sizes, open_run
from fedft.server.loop import Loop
from fedft.server.open_run import OpenRun
from fedft.simulations import devices, fleet, idle_options, python_inputs, run_header
from fedft.simulations.python_run import Run
from fedft.simulations.virtual_clock import VirtualPost
from fedft.simulations.workplace import Workplace, whose, workplace

if TYPE_CHECKING:
    from fedft.privacy.audit.canaries import Plan
    from fedft.privacy.audit.findings import Rows

log = logging.getLogger(__name__)

QUICKSTART = Path(__file__).with_name("quickstart.toml")


def simulate(
    run: RunConfig | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    allow: Iterable[str] = (),
    observe: Observers = (),
    show: bool = False,
    **tables: Any,
) -> Run:
    """Run a simulation to its end.

        fedft.simulate("run.toml", out="runs/a")
        fedft.simulate(model="models/llama", data={"north": rows, "south": frame}, local={"steps": 20}, show=True)

    Args:
        run: a run file, a config, or None: the quickstart, or defaults where tables are given.
        out: run folder; None: a new one under `fedft-runs/`.
        resume: continue the run in `out` where it stands.
        allow: each "package.module:name" outside fedft that the run file may name; importing one runs its module.
        observe: who hears of rounds, admitted updates and metrics as they come, one or several: functions of a kind
            ("round", "admitted", "line"...) and of its facts by name. One that fails is told once and does not end the
            run.
        show: print what `fedft simulate` prints, with its bar, in notebooks too.
        tables: tables of a run file, whose keys win over those of `run`: local={"steps": 20}, server={"rounds": 3}...
            `strategy` may be a name; `model` a folder, a hub id or (model, tokenizer), loaded; `data` a file, rows
            (dictionaries), a pandas frame, a data set of `datasets`, or a dictionary of these by client, as may
            data={"train": ..., "test": ...}. What is in memory is written to `inputs/` of the run folder.
    Raises:
        ConfigError, DataError: a user's mistake, before any work.
        RunPaused: the run stopped where it can go on.
        ModelHeldBack: the run ended, and `[audit] gate` keeps its model from being written.
        ClientFailed: a client failed, and would fail again; an exception of its code is the cause.
    """
    allowed_code.allow(allow)
    config, folder = _opened(run, tables, out, resume)
    if not show:
        return _run(config, folder, resume, observe)
    with Progress(quiet=False, rounds=config.server.rounds) as progress:
        done = _run(config, folder, resume, [*([observe] if callable(observe) else observe), progress.observe])
        progress.finish(done.summary, done.folder)
    return done


def _opened(
    run: RunConfig | str | Path | None, tables: Mapping[str, Any], out: str | Path | None, resume: bool
) -> tuple[RunConfig, Path]:
    """(config, folder) of the run that a caller of `simulate` means."""
    if isinstance(run, RunConfig):
        if tables:
            raise ConfigError(f"{next(iter(tables))}: keys are laid over a run file, not over a config; use replace")
        return run, choose_folder(f"quickstart-{run.strategy.name}", out, resume)
    if tables:
        folder = choose_folder(Path(run).stem if run else "python", out, resume)
        return python_inputs.config_of(Path(run) if run else None, tables, folder, resume=resume), folder
    config = configs.load(Path(run) if run else QUICKSTART)
    return config, choose_folder(f"{Path(run).stem if run else 'quickstart'}-{config.strategy.name}", out, resume)


def _run(config: RunConfig, folder: Path, resume: bool, observe: Observers) -> Run:
    fleet.check(config)
    devices.check_devices(config)
    with open_run.opened(config, folder, resume=resume, observe=observe) as held:
        config = held.config
        place = workplace(config, held.recipe, folder=folder, trains=config.server.workers is None)
        able = sum(bool(c.test_rows) for c in place.clients.values())
        for line in (
            *place.rows.lines(config.data.max_length, len(place.clients), config.data.max_prompt),
            *idle_options.lines(config, held.recipe, len(place.clients), able),
        ):
            log.warning("%s", line)
        message_sizes.check_sizes(config, held.recipe, place.layout, len(place.clients))
        disk_need.check(config, held.recipe, place.layout, len(place.clients), folder)
        counts = {name: len(c.train_rows) for name, c in place.clients.items()}
        cost = foreseen_privacy.of_run(config, held.recipe, place.layout, counts, deployed=False)
        plan = _planted(place)
        opened = held.begin(place.here, whose(place.clients))
        if plan is not None:
            from fedft.privacy.audit import canaries

            canaries.keep(folder, plan)
        before = run_header.peak(place)
        with fleet.post(place, folder) as post:
            said = run_header.header(place, getattr(post, "together", 1), cost)
            opened.observe("header", said)
            loop = _loop(opened, place, post)
            if config.privacy.on:
                from fedft.simulations.client_accounts import ClientAccounts

                loop.federation.spent = ClientAccounts(folder, config.privacy.delta or 0.0).largest
            state = loop.run(place.clients)
        more = {"rows": place.rows.to_dict(), "header": said, **run_header.error(place, said, before)}
        rows = _audited_rows(place, plan) if config.audit.gate else None
        done = Run(folder, opened.finish(state, len(place.clients), more, rows), opened.metrics.lines)
    if "held_back" in done.summary:
        from fedft.privacy.audit import verdict

        verdict.raise_if_held(folder, done.summary)
    return done


def _planted(place: Workplace) -> "Plan | None":
    """The canaries of a run that is audited at its end, or later; None where there are none."""
    if not (place.config.audit.canaries or place.config.audit.gate):
        return None
    from fedft.simulations import audited_run

    return audited_run.plan_of(place)


def _audited_rows(place: Workplace, plan: "Plan | None") -> "Rows":
    from fedft.simulations import audited_run

    return audited_run.rows_of(place, plan)


def _loop(opened: OpenRun, place: Workplace, post: Post) -> Loop:
    """The engine of a run whose clients a post reaches, or the devices before them."""
    config, recipe = place.config, place.recipe
    if config.clients.devices is None:
        return opened.loop(post, cards=place.cards)
    lines = [] if recipe.evaluation_has_own_state else opened.metrics.lines
    slow = VirtualPost(
        post,
        config,
        devices.dealt(config, place.clients),
        work=partial(devices.operations, opened.forecast),
        brought=partial(budget.brought, earlier=lines, adds=not recipe.replaces_what_is_held),
    )
    return opened.loop(slow, clock=slow.clock, virtual=True)


def choose_folder(name: str, out: str | Path | None, resume: bool) -> Path:
    """The run folder: as told; else the newest `fedft-runs/<name>...` to resume, or the next free one."""
    if out is not None:
        return Path(out)
    root, number = Path("fedft-runs"), 1
    while (root / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    if resume:
        number -= 1
        while number and not (root / (name if number == 1 else f"{name}-{number}") / "config.toml").exists():
            number -= 1  # an attempt that ended before its run began
        if not number:
            raise ConfigError(f"{root}: no run {name!r} to resume; name it with --out")
    return root / (name if number == 1 else f"{name}-{number}")
