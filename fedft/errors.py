"""Everything fedft raises on purpose.

    FedftError
    |- ConfigError        a run file, site file or argument is wrong: the command stops before any work   (exit 2)
    |- DataError          a record, file or model does not fit the task                                   (exit 2)
    |- RunPaused          quorum not reached or disk full: state is safe, the same command resumes        (exit 75)
    |- ModelHeldBack      a run ended, and an audit's gate keeps its model from being written               (exit 3)
    |- ClientFailed       a client of a simulation failed, as it would again; what is committed stays      (exit 1)
    |- StateDamaged       no generation of the run's state can be trusted                                 (exit 65)
    |- OtherVersion       a run's state is whole, and in the form of another version of fedft             (exit 65)
    |- KeyFault           a private key file is missing, unreadable as a key, or open to others           (exit 77)
    |- Interrupted        Ctrl-C or SIGTERM: the same command goes on                                    (exit 130)
    |- PlanRefused        the site's policy does not allow what the server asks; carries a code
    `- RejectedUpdate     a peer's bytes do not fit; carries a code; costs the other peers nothing

Our own mistakes raise Python's own exceptions and show a traceback; a user's mistake is one of the above and shows one
line: what was found, what was wanted, where to look.
"""

import os

EXIT_USAGE, EXIT_HELD_BACK, EXIT_DAMAGED, EXIT_PAUSED, EXIT_KEYS, EXIT_INTERRUPTED = 2, 3, 65, 75, 77, 130


class FedftError(Exception):
    """The base class of everything that fedft raises on purpose.

    `exit_code` is the code that the command line ends with when the error reaches it.
    """

    exit_code = 1


def in_one_line(e: Exception) -> str:
    """An exception's text in one line of bounded length; its type in front unless the text says what was wrong.

    >>> in_one_line(ValueError("expected mu >= 0,\\n got nan"))
    'expected mu >= 0, got nan'
    >>> in_one_line(KeyError("rank"))
    "KeyError: 'rank'"
    """
    said = " ".join(str(e).split())
    said = said if len(said) <= 500 else f"{said[:480]}... ({len(said)} characters)"
    return (
        said
        if said and isinstance(e, FedftError | TypeError | ValueError | ImportError)
        else f"{type(e).__name__}: {said}"
    )


def offline() -> str:
    """What a message adds where the environment keeps this machine from the hub of models and data; "" elsewhere."""
    return " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("0", "") else ""


def first_line(e: Exception) -> str:
    """The first line of an exception's text, or its type where it says nothing: for libraries that explain at length.

    >>> first_line(OSError("no such model\\nIf this is a private repository...")), first_line(AssertionError())
    ('no such model', 'AssertionError')
    """
    return (str(e).strip() or type(e).__name__).splitlines()[0]


class ConfigError(FedftError):
    """A run file, site file or argument is wrong; the message names the file, the table and the key."""

    exit_code = EXIT_USAGE


class DataError(FedftError):
    """A record, data file or model does not fit the task; the message names which."""

    exit_code = EXIT_USAGE


class RunPaused(FedftError):
    """The run stopped where nothing is lost, for want of clients or of disk; the same command goes on from there."""

    exit_code = EXIT_PAUSED


class ModelHeldBack(FedftError):
    """A run ended, and `[audit] gate` keeps its model from being written; the same command would say the same again."""

    exit_code = EXIT_HELD_BACK


class ClientFailed(FedftError):
    """A client of a simulation failed, and would again: its numbers are not finite, or its code raised the cause."""


class StateDamaged(FedftError):
    """A run has files of its state, but none whose digest is right; nothing was overwritten."""

    exit_code = EXIT_DAMAGED


class OtherVersion(FedftError):
    """A run's state is whole, but not in the form that this version reads and writes; nothing was changed."""

    exit_code = EXIT_DAMAGED


class KeyFault(FedftError):
    """A private key file cannot be used; the message names the file and never shows what is in it."""

    exit_code = EXIT_KEYS


class Interrupted(FedftError):
    """Ctrl-C or SIGTERM stopped a run; the same command goes on from there."""

    exit_code = EXIT_INTERRUPTED


class GateRefused(Exception):
    """A new state must not be committed; the text says why."""


class Refusal(FedftError):
    """A peer's request or answer is refused, for a reason with a machine-readable `code`.

    The codes are in the module docstrings of what refuses: `fedft.wire.messages`, `fedft.security.sealed`,
    `fedft.server.admission`, `fedft.client.allowed_jobs`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RejectedUpdate(Refusal):
    """A peer's bytes do not make the message that was expected, such as an `Update` which fits the run.

    Caught in the round in which they came: a bad update costs the other clients nothing.
    """


class PlanRefused(Refusal):
    """A site will not carry out a server's plan or job, since its policy does not allow it or its data do not fit."""
