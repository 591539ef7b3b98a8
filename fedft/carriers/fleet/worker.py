"""What a worker of a fleet does: it answers letters with the clients that live in it, until nobody asks any more.

    python -m some.module NUMBER         whose last line is `worker.serve(sys.argv[1], begin)`

The number is of a file that is open both ways. A worker ends when its standard input does, as when the process that
started it has died, however: so nothing is left behind.
"""

import json
import logging
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from fedft.carriers.fleet import crew
from fedft.carriers.fleet.crew import Order, Said
from fedft.carriers.interface import Post
from fedft.errors import FedftError, in_one_line

STOP = b"stop"
AHEAD = 1  # answers that wait behind the one that is being sent; then the next client waits
Begin = Callable[[Mapping[str, Any]], tuple[Post, dict[str, Any]]]
"""What a worker is told -> (the post of its clients, what it has to say of them)."""


def serve(number: str, begin: Begin) -> None:
    """Read what this worker is told, begin, say so, and answer calls until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's whole group; who started us says what it means
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    connection: Connection = Connection(int(number))
    outbox: queue.Queue[Said] = queue.Queue(AHEAD)
    threading.Thread(target=_send, args=(connection, outbox), daemon=True).start()
    say = outbox.put
    try:
        told = json.loads(connection.recv_bytes())
        _log_to(say, told.get("level", logging.WARNING))
        try:
            post, facts = begin(told)
        except Exception as e:
            say(failure(e))
            return
        say(({"is": "ready", **facts}, b""))
        while True:
            line = connection.recv_bytes()
            if line == STOP:  # it crossed our word that we are done
                continue
            asked = json.loads(line)
            payloads = [connection.recv_bytes() for _ in range(asked["payloads"])]
            orders = crew.orders(asked["letters"], payloads)
            for said in answers(post, orders, lambda: connection.poll() and connection.recv_bytes() == STOP):
                say(said)
    except (EOFError, ConnectionResetError):
        return  # nobody is there any more
    finally:
        outbox.join()


def answers(post: Post, orders: Sequence[Order], stopped: Callable[[], bool] = lambda: False) -> Iterator[Said]:
    """What a worker says to a call: an answer for each order, as it comes, and that it is done; or why it failed."""
    waiting = {post.push(o.letter)[0]: o.ticket for o in orders}
    try:
        while waiting and not stopped():
            for reply in post.pull(waiting):
                yield crew.answer(waiting.pop(reply.ticket), reply.answer)
    except Exception as e:
        yield failure(e)
    else:
        yield {"is": "done"}, b""
    finally:
        post.cancel(waiting)


def failure(e: Exception) -> Said:
    """What a worker says of an exception; of one that is a bug, or has one as its cause, with its traceback."""
    bug = e.__cause__ if isinstance(e, FedftError) else e
    trace = "".join(traceback.format_exception(bug)) if bug is not None else ""
    text = str(e) if isinstance(e, FedftError) else in_one_line(e)
    return {"is": "failed", "error": type(e).__name__, "text": text, "traceback": trace}, b""


def _send(connection: Connection, outbox: "queue.Queue[Said]") -> None:
    """Send what is in the outbox while the next client trains; end this process where nobody is there any more."""
    while True:
        line, payload = outbox.get()
        try:
            connection.send_bytes(json.dumps(line).encode())
            connection.send_bytes(payload)
        except OSError:
            os._exit(1)
        outbox.task_done()


def _end_with_stdin() -> None:
    """End this process, in whatever it is, once nobody holds the other end of its standard input."""
    while os.read(0, 1):  # not through Python's own buffer, whose lock may not be held as Python ends
        pass
    os._exit(1)


def _log_to(say: Callable[[Said], None], level: int) -> None:
    """Send what is logged here, and Python's warnings, to whoever started this process."""

    class Relay(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            say(({"is": "log", "name": record.name, "level": record.levelno, "text": text}, b""))

    logging.basicConfig(handlers=[Relay()], level=level, force=True)
    logging.captureWarnings(True)
