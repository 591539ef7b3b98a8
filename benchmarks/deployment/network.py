"""A network on loopback that can be cut and stalled: a TCP proxy before the server."""

import socket
import threading
from contextlib import suppress


class Wire:
    """The network between one site and the server, which can be cut (refused, reset) or stall (silence)."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._open: set[socket.socket] = set()
        self._cut = False
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset what is open, and whatever is opened from now on."""
        self._cut = True
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Carry no byte more."""
        self._flows.clear()

    def mend(self) -> None:
        """As new."""
        self._cut = False
        self._flows.set()

    def _accept(self) -> None:
        while True:
            site, _ = self._listener.accept()
            try:
                if self._cut:
                    raise OSError
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                site.close()
                continue
            for pair in ((site, server), (server, site)):
                self._open.add(pair[0])
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
