"""What became of a run's rows on their way into tokens: counted once, said before round 1, kept in summary.json."""

from dataclasses import asdict, dataclass, field
from typing import Any

from fedft import check


@dataclass
class RowCounts:
    """Sums over the clients of a simulation, or of the one client of a site; rows to train on and rows held out."""

    rows: int = 0
    """Rows that belong to a client."""
    cut: int = 0
    """Rows longer than `[data] max_length` or `max_prompt`, of which something was cut off."""
    learned_tokens: int = 0
    """Tokens that are learned, or measured on the rows held out."""
    learned_tokens_cut: int = 0
    """Such tokens that were cut off."""
    dropped: int = 0
    """Rows left out because they are too long, by `[data] too_long = "drop"`."""
    empty: int = 0
    """Rows left out because nothing can be learned of them: an empty response, or none of it within the length; of
    pairs, an empty answer or two equal ones."""
    test_rows_of_nobody: int = 0
    """Rows of the test file that belong to none of the run's clients."""
    clients_too_small: list[str] = field(default_factory=list)
    """Names of the clients with fewer rows than `[data] min_rows`, which take no part."""
    clients_without_test_rows: list[str] = field(default_factory=list)
    """Names of the clients on which nothing can be measured."""
    with_control_tokens: int = 0
    """Rows whose values hold text that the tokenizer reads as a control token; they are used as they are."""
    control_tokens: list[str] = field(default_factory=list)
    """Those texts."""
    fixed_date: str = ""
    """The date that stands for today's in a chat template that writes it; "" where none does."""
    never_stops: str = ""
    """Why the model never learns to stop, and what to do; "" where an end of what is learned is learned."""

    def encoded(self, example: Any) -> int:
        """Count an encoded row, also one of which nothing can be learned; returns how many of its tokens were cut."""
        self.rows += 1
        lost, prompt = getattr(example, "lost", 0), getattr(example, "prompt_lost", 0)
        self.cut += bool(lost or prompt)
        self.learned_tokens += getattr(example, "learned", 0)
        self.learned_tokens_cut += lost
        return int(lost + prompt)

    def lines(self, max_length: int | str, clients: int, max_prompt: int | None = None) -> list[str]:
        """What a user has to be told, a line for each kind; nothing where nothing was left out."""
        said = []
        most = f"max_length = {max_length}" + ("" if max_prompt is None else f" or max_prompt = {max_prompt}")
        if self.cut > self.dropped:
            all_tokens = self.learned_tokens + self.learned_tokens_cut
            said.append(
                f"{self.cut} of {self.rows} rows are longer than {most} tokens and were cut; "
                f"{self.learned_tokens_cut} of {all_tokens} tokens to learn are gone"
            )
        if self.dropped:
            said.append(f"{self.dropped} of {self.rows} rows are longer than {most} and were dropped")
        if self.empty:
            said.append(f"{self.empty} of {self.rows} rows were skipped: there is nothing to learn in them")
        if self.test_rows_of_nobody:
            said.append(f"{self.test_rows_of_nobody} rows of the test file belong to no client and were left out")
        if small := self.clients_too_small:
            names = check.few([*map(repr, small)])
            said.append(f"{len(small)} clients have fewer rows than min_rows and take no part: {names}")
        if lacking := self.clients_without_test_rows:
            names = check.few([*map(repr, lacking)])
            said.append(f"{len(lacking)} of {clients} clients have no held-out row to measure on: {names}")
        if self.with_control_tokens:
            names = check.few([*map(repr, self.control_tokens)])
            said.append(
                f"{self.with_control_tokens} of {self.rows} rows have {names} in their own text, which the tokenizer "
                f"reads as control tokens; take it out of the records where it is not meant so"
            )
        if self.fixed_date:
            said.append(
                f"the chat template writes the day's date; it is {self.fixed_date} in all rows, on every site and day"
            )
        if self.never_stops:
            said.append(f"the model never learns to stop: {self.never_stops}")
        return said

    def to_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return asdict(self)
