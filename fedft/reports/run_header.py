"""The lines above a run's first row: what is trained on whose rows, what a round will send, how long it will take."""

from collections.abc import Mapping
from typing import Any

from fedft import check
from fedft.reports import metric_log, privacy_lines
from fedft.reports.quantities import count, duration, size

SHORT_S = 10.0  # a run that ends sooner needs no forecast


def lines(header: Mapping[str, Any]) -> list[str]:
    """The header of a run as six lines of plain text; `fedft.simulations.run_header` explains its facts.

    More where there is something to say of workers, of memory, of what the run's bytes depend on, and of privacy.

    They fit into 80 columns unless names in them are long.
    """
    h = header
    model = h["model"] if len(h["model"]) <= 30 else f"...{h['model'][-27:]}"
    share = 100 * h["trainable"] / max(1, h["parameters"])
    least, most = min(h["ranks"], default=0), max(h["ranks"], default=0)
    rank = f" of rank {most}" if least == most else f" of ranks {least} to {most}"
    rank = rank if most else ""
    whose = f", {h['asked']} of them a round" if h["asked"] < h["clients"] else ""
    bits = f"base of {h['base_bits']} bits, " if h.get("base_bits") else ""
    workers = [f"workers  {len(h['workers'])}: {check.few(h['workers'], 8)}"] if h.get("workers") else []
    told = [
        f"model    {model}: {count(h['parameters'])} parameters, {bits}{h['dtype']} on {h['device']}",
        *workers,
        f"trains   {count(h['trainable'])} numbers ({share:.3g} %), {h['adapter']}{rank}, by {h['strategy']}",
        f"clients  {h['clients']}{whose}, with {count(h['train_rows'])} rows and {count(h['held_out_rows'])} held out",
    ]
    lost = [f"{count(h[key])} {words}" for key, words in (("cut", "cut"), ("left_out", "left out")) if h[key]]
    told.append(
        "; ".join([f"rows     of at most {count(h['max_length'])} tokens", *([", ".join(lost)] if lost else [])])
    )
    traffic = f"{size(h['bytes_up'])} up, {size(h['bytes_down'])} down"
    steps = f"{h['steps']} {'step' if h['steps'] == 1 else 'steps'}"
    which = "round 1" if h.get("planned") else "a round"
    told.append(f"{which}  {steps} each; about {traffic}; run folder {size(h['disk'])}")
    if memory := h.get("memory"):
        parts = [f"{k} {size(round(memory[k]))}" for k in ("base", "activations", "logits") if memory[k]]
        told.append(f"memory   {size(round(memory['peak']))} at most: {', '.join(parts)}")
    if depends := h.get("depends"):
        told.append(f"digests  depend on {', '.join(depends)}")
    told += privacy_lines.lines(h.get("privacy", {}))
    return [*told, "loss     of held-out rows, mean over clients: each counts once"]


def forecast(header: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """How long a run will go on after the round of this line of metrics.jsonl, in words; "" where it is not worth it.

    Of a run with a budget nothing is said: it may end before its last round.
    """
    took, left = metric_log.wall_seconds(line), header["rounds"] - line["version"]
    if header["budget"] is not None or took * left < SHORT_S:
        return ""
    return f"about {duration(took * left)} more, for {left} {'round' if left == 1 else 'rounds'} of {duration(took)}"
