"""What the run's model writes behind the fixed prompts of `[eval] prompts`, in generations.jsonl of the run folder.

    {"prompt": "...", "round": 3, "text": "..."}        one object per line: every prompt, at every evaluation

The server writes them itself, with the state that every client is sent: greedily, so the same state writes the same
text, and nothing in it comes from a client's rows but what the state has learned. A state's lines are durable before
its line of metrics.jsonl; those of a state that has none yet are dropped when a run is resumed, and written anew.
"""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from fedft import durable
from fedft.config import RunConfig
from fedft.contract import State
from fedft.errors import ConfigError, DataError
from fedft.models.resident import Resident
from fedft.recipe import Recipe
from fedft.reports import generations
from fedft.server import run_outputs
from fedft.training import prompts

log = logging.getLogger(__name__)


class PromptedTexts:
    """The generations.jsonl of one run, added to as the run goes."""

    def __init__(
        self, folder: Path, config: RunConfig, recipe: Recipe, here: Resident, versions: Collection[int]
    ) -> None:
        """Take up the file in the run's folder, if there is one; lines of other versions than these are cut off.

        `here` is the base model of the run's engine, on which nobody relies between two rounds. Raises ConfigError and
        DataError where the prompts cannot become tokens.
        """
        prompts.examples(config, here.base, here.handle)
        self._path, self._recipe, self._here = folder / generations.FILE, recipe, here
        self._said_cut: set[str] = set()
        before = generations.read(folder)
        if kept := [one for one in before if one["round"] in versions]:
            durable.write(self._path, _lines(kept))
        else:
            self._path.unlink(missing_ok=True)

    def __call__(self, state: State, config: RunConfig) -> None:
        """Add what the model writes at `state`. Raises RunPaused where the disk does not take it."""
        if not config.eval.prompts:
            return
        base, handle = self._here.base, self._here.handle
        try:
            asked = prompts.examples(config, base, handle)
        except (ConfigError, DataError) as e:  # prompts that were set while the run goes on
            log.warning("nothing is written behind [eval] prompts: %s", e)
            return
        run_outputs.set_model_to(config, self._recipe, self._here.layout, handle, state)
        self._say_what_is_cut(config.eval.prompts, [one.prompt_lost for one in asked])
        texts = prompts.written(config, base, handle, asked)
        news = [
            {"round": state.version, "prompt": prompt, "text": text}
            for prompt, text in zip(config.eval.prompts, texts, strict=True)
        ]
        durable.write(self._path, _lines([*generations.read(self._path.parent), *news]))

    def _say_what_is_cut(self, said: Sequence[str], lost: Sequence[int]) -> None:
        """Which prompts are longer than `[data] max_length`, the first time that each is."""
        for number, (text, tokens) in enumerate(zip(said, lost, strict=True), 1):
            if tokens and text not in self._said_cut:
                self._said_cut.add(text)
                why = "is longer than [data] max_length, %d tokens at its beginning are cut off"
                log.warning(f"[eval] prompts: prompt %d {why}", number, tokens)


def _lines(found: Sequence[generations.Written]) -> bytes:
    return "".join(f"{json.dumps(one, sort_keys=True)}\n" for one in found).encode()
