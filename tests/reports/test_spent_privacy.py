"""What a run has spent of privacy, or why nobody can say: in its summary, its model's folder, and a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedft.privacy.tables import Privacy
from fedft.reports.spent_privacy import NOBODY, NONE, sentence, spent

CENTRAL = Privacy("central-dp", clip=1.0, noise_multiplier=1.0, delta=1e-3)
RECORDS = Privacy("example-dp", clip=1.0, noise_multiplier=1.0, delta=1e-5)


@pytest.mark.parametrize(
    ("privacy", "lines", "facts", "said"),
    [
        (Privacy(), [{"epsilon": 3.0}], {"epsilon": None, "epsilon_why": NONE}, f"epsilon none: {NONE}"),
        (
            CENTRAL, [{"epsilon": 0.0}, {"epsilon": 7.9678}],
            {"epsilon": 7.9678, "delta": 1e-3, "privacy": "central-dp"},
            "epsilon 7.97 at delta 0.001, of one client (central-dp)",
        ),
        (
            RECORDS, [{"epsilon": 1.5}, {"loss": 2.0}], {"epsilon": 1.5, "delta": 1e-5, "privacy": "example-dp"},
            "epsilon 1.5 at delta 1e-05, of one record (example-dp)",
        ),
        (
            CENTRAL, [{"epsilon": None, "epsilon_why": "seeded noise"}],
            {"epsilon": None, "epsilon_why": "seeded noise", "delta": 1e-3, "privacy": "central-dp"},
            "epsilon none: seeded noise",
        ),
        (
            CENTRAL, [{"loss": 1.0}], {"epsilon": None, "epsilon_why": NOBODY, "delta": 1e-3, "privacy": "central-dp"},
            f"epsilon none: {NOBODY}",
        ),
    ],
)  # fmt: skip
def test_it_is_what_the_last_line_says_or_the_reason(
    privacy: Privacy, lines: list[dict[str, Any]], facts: dict[str, Any], said: str
) -> None:
    assert spent(privacy, lines) == facts
    assert sentence(facts) == said


def test_the_facts_are_plain_json(tmp_path: Path) -> None:
    facts = spent(CENTRAL, [{"epsilon": 2.5}])
    assert json.loads(json.dumps(facts)) == facts
