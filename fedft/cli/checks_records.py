"""What a site's records are and become, as a run would make tokens of them; `checks_machine.py` has what a check is."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedft import check
from fedft.cli.checks_machine import FAIL, OK, WARN, Finding

if TYPE_CHECKING:
    from fedft.client.site_settings import SiteConfig, SiteData
    from fedft.data.records import Row
    from fedft.models.load import Base

FIRST = 100
"""Rows that are looked at more closely than that they can be read."""


def site_rows(site: "SiteConfig", own: "list[Row]") -> Iterator[Finding]:
    """The site's own rows, as a run finds them, to train on and held out; templates of its file must fit each.

    Those to train on are added to `own`.
    """
    from fedft.config import Data, RunConfig
    from fedft.data import client_datasets, templates

    d = site.data
    files = RunConfig(data=Data(train=d.train, test=d.test, holdout=0.0))
    train, held = client_datasets.of_site(files, site.site.name, d.client, d.value)
    said = client_datasets.said(d.train)
    texts = (d.prompt, d.response, d.text) if not pairs(d) else ()  # of pairs these may be lists of messages
    for template in texts:
        for i, row in enumerate((*train, *held) if template is not None else (), 1):
            templates.fill(template or "", row, f"{said}, row {i} of this site")
    own += train
    share = "a share of them is held out as the run says" if d.test is None else f"{len(held)} held out"
    if train:
        yield Finding("rows", OK, f"{said}: {len(train)} rows, {share}")
    else:
        yield Finding("rows", FAIL, f"{said}: no row", "[data] train must name this site's records")


def forms(data: "SiteData", own: "Sequence[Row]") -> Iterator[Finding]:
    """Conversations, tokens and labels of the first rows, where the site's file names their field; no model is needed.

    Raises DataError for a row that is not of this form.
    """
    from fedft.data import client_datasets, conversations, token_columns
    from fedft.data.records import value_of

    looked, said = own[:FIRST], client_datasets.said(data.train)
    where = [f"{said}, row {n} of this site" for n, _ in enumerate(looked, 1)]
    seen = f"the first {len(looked)} rows"
    if (field := data.messages) is not None:
        talks = [conversations.messages(row, field, place) for row, place in zip(looked, where, strict=True)]
        turns = [message for talk in talks for message in talk]
        learned = sum(map(conversations.taught, turns))
        yield Finding("conversations", OK, f"{seen} have {len(turns)} messages; {learned} are learned")
    if (field := data.tokens) is not None:
        found = [
            token_columns.encode(row, field=field, ids=2**63, max_length=2**63, where=place)
            for row, place in zip(looked, where, strict=True)
        ]
        longest = max((len(e.input_ids) for e in found), default=0)
        yield Finding(
            "tokens", OK, f"{seen} have up to {longest} token ids; {sum(e.learned for e in found)} are learned"
        )
    if (label := data.label) is not None:
        each = [label] if isinstance(label, str) else label
        cells = [value_of(row, f, place) for f in each for row, place in zip(looked, where, strict=True)]
        values = {str(v) for cell in cells for v in (cell if isinstance(cell, list) else [cell])}
        named = check.few([*map(repr, sorted(values))], 8)
        yield Finding("labels", OK, f"{seen} have {len(values)} of them: {named}; the run must have the same")


def encoded(data: "SiteData", own: "Sequence[Row]", base: "Base") -> Iterator[Finding]:
    """The first rows as tokens of the base model, where the site's file says their form; what a run would say of them.

    Raises DataError as `client_datasets.encode` does.
    """
    from fedft.config import Data, Local, Model, RunConfig
    from fedft.data import client_datasets
    from fedft.data.row_counts import RowCounts
    from fedft.models import lengths, tasks

    form: dict[str, Any] = {k: v for k in FORM if (v := getattr(data, k)) is not None}
    if not form or not own:
        yield Finding("records", OK, "not looked at: the run says what becomes of them" if own else "there are none")
        return
    looked = own[:FIRST]
    classes = form.keys() & {"text", "label"} and not form.keys() & {
        "prompt",
        "response",
        "messages",
        "tokens",
        "encode",
    }
    cells = [row.get(data.label or "label") for row in looked] if not isinstance(data.label, list) else [data.label]
    if classes and any(isinstance(cell, list) or str(cell).lstrip().startswith("[") for cell in cells):
        yield Finding("records", OK, "not looked at: the run says what its labels are")
        return
    labels = sorted({str(cell) for cell in cells})
    task = tasks.CLASSES.name if classes else base.task if tasks.of(base.task).generates else tasks.CAUSAL.name
    model = Model(id=base.source, task=task, labels=labels if classes else [])
    config = RunConfig(model, Data(data.train, **form), local=Local(objective="dpo") if pairs(data) else Local())
    config = replace(config, data=replace(config.data, max_length=(longest := lengths.chosen(config))))
    client_datasets.encode({"this site": (list(looked), [])}, config, base, counts := RowCounts())
    counts.clients_without_test_rows.clear()  # nothing was held out here
    said = f"the first {counts.rows} rows have {counts.learned_tokens} tokens to learn at max_length = {longest}"
    yield Finding("records", OK, f"{said}, where the run says no other")
    for line in counts.lines(longest, 1):
        yield Finding("records", WARN, line, "DATA.md says what becomes of records")


FORM = ("prompt", "response", "chosen", "rejected", "messages", "chat_template", "tokens", "encode", "text", "label")
"""Keys of `[data]` that say what a record is."""


def pairs(data: "SiteData") -> bool:
    """Whether a site's file says that its records are pairs of answers."""
    return data.chosen is not None or data.rejected is not None
