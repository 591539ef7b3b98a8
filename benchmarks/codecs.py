"""Codecs: bits per parameter, error and speed on an update's tensors; and what a run keeps of its progress.

    python benchmarks/codecs.py --json codecs.json
    python benchmarks/codecs.py --learn --rounds 8

Sizes are of whole messages: frame, names, scales and all. Speeds are of float32 input in CPU seconds of one thread, the
best of several passes, with everything between tensors and bytes. `gap` is bits per parameter above -log2 of the
relative error (root mean square over tensors), the least any code needs for Gaussian tensors.

The update is made up: LoRA pairs of Gaussian entries whose sizes differ by tensor and by row. With --learn the
built-in base is fine-tuned instead (FedIT, two clients), its second round's update is measured, and the same run is
repeated with some codecs on uploads, without and with error feedback: the share that is left of how far the training
loss falls in fp32.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from fedft import codec
from fedft.codec_name import parse
from fedft.update import TensorSpec, Update

NAMES = (
    "fp32",
    "bf16",
    "fp16",
    "int8",
    "int4",
    "ternary",
    "ternary:0.5",
    "ternary:0.2",
    "ternary:0.1",
    "ternary:0.05",
    "topk:0.1|fp16",
    "topk:0.1|int8",
    "topk:0.1|int4",
    "randk:0.1|int8",
    "fixed:16",
)
LEARNT = ("int8", "int4", "ternary:0.5", "ternary:0.1", "topk:0.1|int4")


def made_up(modules: int, rank: int, width: int) -> dict[str, Tensor]:
    """LoRA pairs of modules of width x width."""
    g = torch.Generator().manual_seed(0)
    out = {}
    for i in range(modules):
        name = f"model.layers.{i // 4}.self_attn.{'qkvo'[i % 4]}_proj"
        rows = 0.01 * 2 ** (torch.randn(rank, generator=g) / 3 + torch.randn(1, generator=g))
        out[f"{name}.lora_A"] = torch.randn(rank, width, generator=g) * rows[:, None]
        out[f"{name}.lora_B"] = torch.randn(width, rank, generator=g) * rows
    return out


def measured(delta: Mapping[str, Tensor], name: str, passes: int) -> dict[str, float]:
    """Size, error and speed of one codec on one update."""
    update = Update(delta, 1000, 3, "0123456789abcdef", metrics={"loss": 1.2345678, "steps": 40.0})
    spec = {n: TensorSpec(tuple(t.shape)) for n, t in delta.items()}
    n = sum(t.numel() for t in delta.values())
    data = codec.encode_update(update, name, 1)
    got = codec.decode_update(data, spec, name).delta
    ratios = [float((got[k].double() - t).norm() / t.double().norm()) ** 2 for k, t in delta.items()]
    error = (sum(ratios) / len(ratios)) ** 0.5
    bits = 8 * len(data) / n
    return {
        "bits": bits,
        "smaller": 32 / bits,
        "error": error,
        "gap": bits + math.log2(error) if error else 0.0,
        "encode_mb_s": 4e-6 * n / best(lambda: codec.encode_update(update, name, 1), passes),
        "decode_mb_s": 4e-6 * n / best(lambda: codec.decode_update(data, spec, name), passes),
    }


def best(f: Callable[[], Any], passes: int) -> float:
    """Least CPU seconds of a call."""
    seconds = []
    for _ in range(passes):
        began = time.process_time()
        f()
        seconds.append(time.process_time() - began)
    return min(seconds)


@dataclass
class Learning:
    """FedIT on the built-in base, two clients."""

    steps: int
    rank: int
    place: Any = field(init=False)

    def __post_init__(self) -> None:
        from fedft import config
        from fedft.simulations.run import workplace

        said = ["strategy.name=fedit", "data.clients=2", f"clients.rank={self.rank}", f"local.steps={self.steps}"]
        self.place = workplace(config.load(None, said))

    def rounds(self, count: int, up: Callable[[str, int, dict[str, Tensor]], Mapping[str, Tensor]]) -> list[float]:
        """Losses on training rows before and after so many rounds; `up` says what becomes of a client's update."""
        from fedft import data, evaluate, philox, tensors
        from fedft.recipe import State, Turn
        from fedft.update import Plan

        place, seed = self.place, 11
        recipe, local = place.recipe, place.config.local
        rows = [row for c in place.clients.values() for row in c.train_rows[:48]]
        state = recipe.first_state(place.layout, self.rank, seed)
        losses = []
        for t in range(count + 1):
            plan = Plan("0" * 16, t, t, rank=self.rank, steps=self.steps, learning_rate=local.learning_rate)
            plan = Plan(**{**vars(plan), "tensors": recipe.downlink(state, None, plan)})
            now = recipe.receive(None, plan)
            updates = []
            for name, client in place.clients.items():
                own = philox.derive(seed, "client", name, t)
                turn = Turn(plan, now, tensors.digest(now), local, seed, own)
                recipe.start(place.handle, turn)
                if not updates:
                    losses.append(evaluate.evaluate(place.handle, rows, 16, place.base.pad_id)["loss"])
                if t < count:
                    pad = place.base.pad_id
                    batches = data.batches(
                        client.train_rows, batch_size=local.batch_size, steps=self.steps, seed=own, pad_id=pad
                    )
                    delta = recipe.local(place.handle, batches, turn).delta
                    updates.append(Update(up(name, own, delta), len(client.train_rows)))
            if t < count:
                state = State(t + 1, recipe.server(state, recipe.aggregate(iter(updates))))
        return losses


def uplink(name: str, feedback: bool) -> Callable[[str, int, dict[str, Tensor]], Mapping[str, Tensor]]:
    """What the server sees of an update u: roundtrip(u + e), with e' = u + e - roundtrip(u + e) if `feedback`."""
    left: dict[str, dict[str, Tensor]] = {}

    def up(client: str, seed: int, delta: dict[str, Tensor]) -> Mapping[str, Tensor]:
        meant = {n: t + left[client][n] for n, t in delta.items()} if client in left else delta
        seen = codec.roundtrip(meant, name, seed)
        if feedback:
            left[client] = {n: meant[n] - seen[n] for n in meant}
        return seen

    return up


def main(
    modules: Annotated[int, typer.Option(help="Adapted layers of the made-up update")] = 16,
    rank: Annotated[int, typer.Option(help="LoRA rank")] = 16,
    width: Annotated[int, typer.Option(help="Inputs and outputs of a layer")] = 4096,
    passes: Annotated[int, typer.Option(help="Of each measurement; the best counts")] = 5,
    learn: Annotated[bool, typer.Option("--learn", help="Measure a real update, and runs")] = False,
    rounds: Annotated[int, typer.Option(help="Of the runs of --learn")] = 8,
    steps: Annotated[int, typer.Option(help="Local steps per round of --learn")] = 20,
    only: Annotated[list[str] | None, typer.Option(help="These codecs only")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write the numbers here")] = None,
) -> None:
    """Measure codecs; a table, and JSON."""
    torch.set_num_threads(1)
    names = [parse(name).name for name in only or NAMES]
    runs: dict[str, dict[str, float]] = {}
    learning = Learning(steps, rank) if learn else None
    if learning is None:
        delta: dict[str, Tensor] = made_up(modules, rank, width)
    else:
        taken: list[dict[str, Tensor]] = []
        exact = learning.rounds(rounds, lambda name, seed, d: taken.append(d) or d)  # type: ignore[func-returns-value]
        delta = taken[2]
        typer.echo(f"loss {exact[0]:.4f} to {exact[-1]:.4f} in {rounds} rounds of {steps} steps in fp32")
    typer.echo(f"{sum(t.numel() for t in delta.values()):,} parameters in {len(delta)} tensors\n")
    typer.echo(f"{'codec':18}{'bits':>8}{'smaller':>9}{'error':>9}{'gap':>7}{'enc MB/s':>10}{'dec MB/s':>10}")
    found = {}
    for name in names:
        m = found[name] = measured(delta, name, passes)
        typer.echo(
            f"{name:18}{m['bits']:8.3f}{m['smaller']:9.1f}{m['error']:9.4f}{m['gap']:7.2f}"
            f"{m['encode_mb_s']:10.0f}{m['decode_mb_s']:10.0f}"
        )
    if learning is not None:
        typer.echo(
            f"\nshare of fp32's fall of the loss after {rounds} rounds\n{'codec':18}{'alone':>8}{'feedback':>10}"
        )
        for name in [parse(name).name for name in only or LEARNT]:
            kept = {}
            for label, feedback in (("alone", False), ("feedback", True)):
                losses = learning.rounds(rounds, uplink(name, feedback))
                kept[label] = (losses[0] - losses[-1]) / (exact[0] - exact[-1])
                kept[label + "_first"] = (losses[0] - losses[1]) / (exact[0] - exact[1])
            runs[name] = kept
            typer.echo(f"{name:18}{kept['alone']:8.1%}{kept['feedback']:10.1%}   first round {kept['alone_first']:.1%}")
    if out is not None:
        out.write_text(json.dumps({"codecs": found, "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
