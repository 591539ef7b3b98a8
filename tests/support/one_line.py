"""What every error that an operator sees has in common."""

import pytest


def one_line(e: pytest.ExceptionInfo[Exception]) -> str:
    """The error's text, which is one line, and not a long one."""
    text = str(e.value)
    assert "\n" not in text
    assert len(text) < 600
    return text
