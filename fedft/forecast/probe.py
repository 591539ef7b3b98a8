"""A few passes of the run's own model on this machine, to know what formulas cannot: its speed, and what it keeps.

    two shapes    one row, and the rows of a step (half of them while that would take too long), all of the same length
    memory        bytes kept until gradients, counted by `saved_tensors_hooks`, over what the formulas say of the same
    time          the smaller of two steps behind one to warm up, processor time on a CPU
    speed         operations of the one shape less those of the other, over the difference of their times

Weights are loaded, and nothing of them is changed.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fedft.contract import Work
from fedft.data.examples import IGNORED, Example
from fedft.errors import ConfigError
from fedft.forecast.activations import Pass
from fedft.forecast.clients import Client
from fedft.forecast.rows import Rows
from fedft.forecast.seconds import Device
from fedft.forecast.work import Forecaster
from fedft.models import resident, tasks
from fedft.models.free_memory import kept_bytes
from fedft.models.handle import ModelHandle
from fedft.reports.quantities import count
from fedft.training import objectives

MOST_S = 30.0


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    share: float
    """Bytes that a pass keeps, over what formulas say of it; 1 where steps keep nothing."""
    per_token: float
    """Bytes that a token more keeps."""
    flops: float
    """Operations a second."""
    overhead: float
    """Seconds of a step that do not depend on its operations."""

    @property
    def text(self) -> str:
        """What was found, in words."""
        fixed = f"{1e3 * self.overhead:.0f} ms of a step are fixed"
        kept = f"a token keeps {self.per_token / 1e3:.1f} kB, {self.share:.2f} of the formula"
        return f"{count(round(self.flops))}FLOP a second here; {fixed}; {kept}"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def device(self, declared: Device) -> Device:
        """What is measured of this machine, with the links that are declared."""
        return replace(declared, flops=declared.flops or self.flops, overhead=self.overhead)

    def corrected(self, client: Client) -> Client:
        """The client with as much of what its passes keep as was measured here."""
        m = client.memory
        if m.where != "step":
            return client
        return replace(client, memory=replace(m, activations=self.share * m.activations, logits=self.share * m.logits))


def measure(of: Forecaster, rows: Mapping[str, Rows]) -> Probe:
    """What passes of the run's model take here, in rows as long as the longest of these clients'.

    Raises ConfigError for rows that are no tokens with labels (pairs, two sides); DataError as `resident.load` does.
    """
    config, recipe = of.config, of.recipe
    if config.local.pairs or tasks.of(config.model.task).two_sides or config.local.packing:
        raise ConfigError("--probe makes up rows of tokens with labels; this run's have another form: leave it out")
    longest = max(rows.values(), key=lambda r: r.longest or config.data.length)
    own = replace(of, rows=replace(longest, padded=True))
    here = resident.load(config, recipe)
    here.handle.write(recipe.space.initial(here.layout, of.shape(Work()), config.server.seed))
    began = time.monotonic()
    found = [_passes(own, here.handle, here.base.ids, 1)]
    most = own.step(Work())[0].rows
    while most > 2 and time.monotonic() - began + 4 * most * found[0][2] > MOST_S:
        most //= 2
    found.append(_passes(own, here.handle, here.base.ids, max(2, most)))
    (one, kept_by_one, s1, f1), (several, kept, s2, f2) = found
    speed = (f2 - f1) / (s2 - s1) if s2 > s1 else f2 / s2
    per_token = (kept - kept_by_one) / (several.places - one.places)
    share = kept / own.kept(Work(), several) if kept else 1.0
    return Probe(share, per_token, speed, max(0.0, s1 - f1 / speed))


def _passes(of: Forecaster, handle: ModelHandle, ids: int, rows: int) -> tuple[Pass, int, float, float]:
    """(the pass, bytes that it keeps, its seconds, its operations) of so many made-up rows."""
    given = replace(of.pass_of(rows), masked=rows > 1)
    g = torch.Generator().manual_seed(rows)
    batch = handle.objective.collate([_row(of, n, given, ids, g) for n in range(rows)], 0)
    learns = of.back_propagates
    kept = kept_bytes(handle, batch) if learns else 0
    times = []
    for _ in range(3):
        began = _now(handle)
        with torch.set_grad_enabled(learns):
            loss = handle.loss(batch)
        if learns:
            loss.backward()
        times.append(_now(handle) - began)
        for parameter in handle.parameters().values():
            parameter.grad = None
    return given, kept, min(times[1:]), of.pass_flops(Work(), given)


def _row(of: Forecaster, n: int, given: Pass, ids: int, g: torch.Generator) -> Example:
    """A made-up row; all but the first are shorter by a token, so that there is a mask."""
    length = max(2, given.tokens - (n > 0))
    tokens = torch.randint(0, ids, (length,), generator=g).tolist()
    if not tasks.of(of.config.model.task).generates:
        kinds = of.config.model.labels
        label: Any = n % max(1, len(kinds))
        if of.config.model.problem_type != objectives.labels.SINGLE:
            label = tuple(float(k == n % len(kinds)) for k in range(len(kinds)))
        return Example(tokens, label, 0)
    learned = min(length - 1, max(1, given.learned // given.rows))
    return Example(tokens, [IGNORED] * (length - learned) + tokens[length - learned :], length - learned)


def _now(handle: ModelHandle) -> float:
    """Seconds that count on the model's device: of this process on a CPU, of the clock elsewhere."""
    device = next(handle.model.parameters()).device
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
