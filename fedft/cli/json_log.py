"""`--log json`: every line that the process writes on stdout or stderr is a JSON object, whoever wrote it.

    records, warnings    one object each, on stdout; what libraries' own handlers would print of them is left out
    uncaught errors      the same, with the traceback in the object; on stderr where they end the process
    everything else      what is printed by Python, C or a child process goes through a pipe, and each line comes out of
                         it as an object of the logger "stdout" or "stderr", on the same stream

What is in a pipe at the moment in which a process is killed by a signal is lost with it, such as the last words of a
library that aborts; what is written after Python has ended, by the destructors of libraries, is as they write it.
"""

import ctypes
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

MAX_LINE_BYTES = 2**16  # of what others print; longer lines are cut into several objects
DRAIN_S = 2.0  # at the end, for what is still in the pipes; a child process may hold them open
FIELDS = ("run", "site", "round")
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
"""Environment of a process whose libraries shall draw no progress bars."""

_everywhere: dict[str, Any] = {}
_here = threading.local()


def know(**facts: Any) -> None:
    """Put these facts (of FIELDS) into every later object that this thread logs; None forgets one.

    What the main thread knows also goes into the objects of threads that were told nothing themselves.
    """
    of = _everywhere if threading.current_thread() is threading.main_thread() else _here.__dict__
    of.update(facts)


def _known() -> dict[str, Any]:
    facts = _here.__dict__ or _everywhere
    return {name: facts[name] for name in FIELDS if facts.get(name) is not None}


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC, milliseconds), level, logger, run, site and round where they are known,
    message, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit; the line must not be lost for it
            message = f"{record.msg!r} of {record.args!r}"
        own = {name: getattr(record, name, None) for name in FIELDS}
        facts = _known() | _begins_with(record) | {name: value for name, value in own.items() if value is not None}
        found = {**_head(record.levelname, record.name, record.created), **facts, "message": message}
        if record.exc_info and record.exc_info[0] is not None:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def _begins_with(record: logging.LogRecord) -> dict[str, Any]:
    """The fact with which a message of ours begins, "run %s: ..." or "round %d: ...", by its name."""
    said = re.match(r"(run|round) %[sd]: ", record.msg) if isinstance(record.msg, str) else None
    return {said[1]: record.args[0]} if said and isinstance(record.args, tuple) and record.args else {}


def _head(level: str, logger: str, at: float) -> dict[str, Any]:
    time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    return {"time": time, "level": level, "logger": logger}


class _Stream:
    """One of the process's streams: what the rest of the process writes to it passes a pipe, and comes out as JSON."""

    def __init__(self, number: int, name: str, level: str) -> None:
        self._number, self._name, self._level = number, name, level
        self._lock = threading.Lock()
        self._out = os.dup(number)
        read, write = os.pipe()
        os.dup2(write, number)
        os.close(write)
        self._thread = threading.Thread(target=self._relay, args=(read,), name=name, daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Write a line whole; who reads us may be gone."""
        rest = memoryview(f"{line}\n".encode())
        with self._lock, suppress(OSError):
            while rest:
                rest = rest[os.write(self._out, rest) :]

    def _relay(self, read: int) -> None:
        """Pass on what comes through the pipe, line by line, until nobody has its other end."""
        begun = b""
        while piece := os.read(read, 65536):
            *lines, begun = (begun + piece).replace(b"\r", b"\n").split(b"\n")
            if len(begun) > MAX_LINE_BYTES:
                lines, begun = [*lines, begun], b""
            for line in lines:
                self._pass_on(line)
        self._pass_on(begun)
        os.close(read)

    def _pass_on(self, line: bytes) -> None:
        for start in range(0, len(line), MAX_LINE_BYTES):
            text = line[start : start + MAX_LINE_BYTES].decode(errors="backslashreplace")
            if text.strip():
                now = datetime.now(UTC).timestamp()
                self.write(json.dumps({**_head(self._level, self._name, now), **_known(), "message": text}))

    def close(self) -> None:
        """Let the process write to the stream itself again, when all that it wrote so far has been passed on."""
        os.dup2(self._out, self._number)
        self._thread.join(DRAIN_S)


class _ToStdout(logging.Handler):
    """The root logger's handler, and the end of all this: `logging.shutdown` closes it, also where a process leaves
    without the interpreter's own end."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._of_others = logging.Logger.callHandlers
        self._hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        self.out, self.err = _Stream(1, "stdout", "INFO"), _Stream(2, "stderr", "WARNING")

    def emit(self, record: logging.LogRecord) -> None:
        self.out.write(self.format(record))

    def install(self) -> None:
        """Take all records and exceptions from here on."""
        logging.basicConfig(handlers=[self], level=logging.INFO, force=True)
        logging.captureWarnings(True)
        logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign,assignment]
        sys.excepthook = self._ended_by
        threading.excepthook = lambda told: _failed(told.exc_type, told.exc_value, told.exc_traceback)
        sys.unraisablehook = lambda told: _failed(told.exc_type, told.exc_value, told.exc_traceback)

    def _ended_by(self, kind: type[BaseException], e: BaseException, at: TracebackType | None) -> None:
        self.say_last(f"{kind.__name__}: {e}", "".join(traceback.format_exception(kind, e, at)))

    def say_last(self, said: str, trace: str = "") -> None:
        """Write on stderr what ends the process."""
        now = datetime.now(UTC).timestamp()
        found = {**_head("ERROR", "fedft", now), **_known(), "message": said}
        self.err.write(json.dumps(found | ({"traceback": trace} if trace else {})))

    def close(self) -> None:
        global _handler
        if _handler is self:
            _handler = None
            logging.Logger.callHandlers = self._of_others  # type: ignore[method-assign]
            logging.captureWarnings(False)
            sys.excepthook, threading.excepthook, sys.unraisablehook = self._hooks
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            with suppress(OSError, AttributeError, TypeError):
                ctypes.CDLL(None).fflush(None)  # what C code has printed and C has not written yet
            self.out.close()
            self.err.close()
        super().close()


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    """In place of `logging.Logger.callHandlers`: handlers that write to a stream are left out but for the root's."""
    of: logging.Logger | None = logger
    while of is not None and of is not logging.root:
        for handler in of.handlers:
            to_a_stream = isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
            if not to_a_stream and record.levelno >= handler.level:
                handler.handle(record)
        of = of.parent
    for handler in logging.root.handlers:
        if record.levelno >= handler.level:
            handler.handle(record)


def _failed(kind: type[BaseException], e: BaseException | None, at: TracebackType | None) -> None:
    """Log an exception that ended a thread, or that nobody could be given."""
    if kind is not SystemExit:
        logging.getLogger("fedft").error("%s: %s", kind.__name__, e, exc_info=(kind, e or kind(), at))


_handler: _ToStdout | None = None


def begin(environment: Mapping[str, str] = QUIET) -> None:
    """Make every later line of this process JSON, until `logging.shutdown`; without effect where it is so already.

    `environment` is added to the process's own, for libraries that are imported from here on.
    """
    global _handler
    if _handler is None:
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        _handler = _ToStdout()
        _handler.install()


def said_last(text: str, cause: BaseException | None = None) -> bool:
    """Write on stderr, as an object, what the process ends with; False where lines are not JSON: nothing is done."""
    if _handler is None:
        return False
    trace = "" if cause is None else "".join(traceback.format_exception(cause))
    _handler.say_last(text, trace)
    return True
