"""Everything fedft raises on purpose.

    FedftError
    |- ConfigError        a run file, site file or argument is wrong: the command stops before any work   (exit 2)
    |- DataError          a record, file or model does not fit the task                                   (exit 2)
    |- RunPaused          quorum not reached or disk full: state is safe, the same command resumes        (exit 75)
    |- StateDamaged       no generation of the run's state can be trusted                                 (exit 65)
    |- KeyFault           a private key file is missing, unreadable as a key, or open to others           (exit 77)
    |- Interrupted        Ctrl-C or SIGTERM: the same command goes on                                    (exit 130)
    |- PlanRefused        the site's policy does not allow what the server asks; carries a code
    `- RejectedUpdate     a peer's bytes do not fit; carries a code; costs the other peers nothing

Our own mistakes raise Python's own exceptions and show a traceback; a user's mistake is one of the above and shows one
line: what was found, what was wanted, where to look.
"""

EXIT_USAGE, EXIT_DAMAGED, EXIT_PAUSED, EXIT_KEYS, EXIT_INTERRUPTED = 2, 65, 75, 77, 130


class FedftError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(FedftError):
    """A config file or argument: the message names the file, the table and the key."""

    exit_code = EXIT_USAGE


class DataError(FedftError):
    """A record, data file or model that does not fit the task."""

    exit_code = EXIT_USAGE


class RunPaused(FedftError):
    """The run stopped where it can go on: nothing is lost, `--resume` continues."""

    exit_code = EXIT_PAUSED


class StateDamaged(FedftError):
    """Files of state exist but none verifies; nothing was overwritten."""

    exit_code = EXIT_DAMAGED


class KeyFault(FedftError):
    """A private key file that cannot be used; the message names the file and never shows what is in it."""

    exit_code = EXIT_KEYS


class Interrupted(FedftError):
    """Somebody stopped a run that can go on."""

    exit_code = EXIT_INTERRUPTED


class Refusal(FedftError):
    """A refusal with a machine-readable `code` (the table in the codec's and admission's docstrings)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RejectedUpdate(Refusal):
    """A client's bytes that do not make an `Update` which fits. Never leaves the round it was sent in."""


class PlanRefused(Refusal):
    """A server's plan that this site will not carry out."""
