"""The admin socket of a running server: `admin.sock` in the run folder, for `fedft admin RUN ...` on the same machine.

    one line of JSON in      {"act": "pause"}                           at most MAX_LINE bytes
    one line of JSON out     {"said": ["paused: ..."]}                  or {"error": "one line"}

The socket has mode 0600, and who connects must be the server's own user, or root, by the kernel's word. Imports nothing
that takes long: the command needs the names here, too.
"""

import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedft.errors import ConfigError, FedftError, in_one_line

log = logging.getLogger(__name__)

NAME = "admin.sock"
MAX_LINE = 2**16
PATIENCE_S = 10.0  # for somebody who connects and says nothing
MAX_PATH = 100  # bytes of a socket's path, which the system cuts at 108, or 104
Request = Mapping[str, Any]


@contextmanager
def listening(folder: Path, answer: Callable[[Request, int], Mapping[str, Any]]) -> Iterator[None]:
    """Answer requests on the socket of the run in `folder` inside the block, by a thread of its own.

    Where this system has no such sockets, or not for a path as long, that is said in the log, and the block goes on.
    """
    try:
        server = _bound(folder)
    except (OSError, AttributeError) as e:
        log.warning("no admin socket in %s: %s; the run goes on without", folder, e)
        yield
        return
    thread = threading.Thread(target=_serve, args=(server, answer), name="admin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # wakes the thread
        server.close()
        thread.join(PATIENCE_S)
        (folder / NAME).unlink(missing_ok=True)


def _bound(folder: Path) -> socket.socket:
    """The listening socket. Raises OSError, and AttributeError where the system cannot say who connects."""
    socket.SO_PEERCRED  # noqa: B018  (not everywhere)
    path = folder / NAME
    path.unlink(missing_ok=True)  # of a server that was killed: this process holds the run's lock
    server, opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), -1
    try:
        os.fchmod(server.fileno(), 0o600)  # before there is a name to connect to
        if len(os.fsencode(path)) > MAX_PATH:
            opened = os.open(folder, os.O_RDONLY)
            path = Path(f"/proc/self/fd/{opened}") / NAME
        server.bind(str(path))
        server.listen(8)
    except BaseException:
        server.close()
        raise
    finally:
        if opened >= 0:
            os.close(opened)
    return server


def _serve(server: socket.socket, answer: Callable[[Request, int], Mapping[str, Any]]) -> None:
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        with peer, suppress(OSError):
            peer.settimeout(PATIENCE_S)
            peer.sendall(json.dumps(_replied(peer, answer)).encode() + b"\n")


def _replied(peer: socket.socket, answer: Callable[[Request, int], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The answer to what a peer asks; nothing that it may send is raised but OSError."""
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    line = bytearray()
    while b"\n" not in line and len(line) <= MAX_LINE and (more := peer.recv(4096)):
        line += more
    try:
        if uid not in (0, os.geteuid()):
            log.warning("admin: uid %d may not ask", uid)
            raise ConfigError(f"uid {uid} may not steer this run; wanted uid {os.geteuid()}, as which the server runs")
        if len(line) > MAX_LINE or not line.endswith(b"\n"):
            raise ConfigError(f"wanted one line of at most {MAX_LINE} bytes")
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ConfigError("wanted an object")
        return answer(request, uid)
    except (FedftError, ValueError, RecursionError) as e:
        return {"error": in_one_line(e)}
    except Exception:
        log.exception("admin: an act failed")
        return {"error": "the server failed in this act; its log says how"}
