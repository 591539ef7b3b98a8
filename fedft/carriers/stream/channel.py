"""TLS over a socket, a bounded number of bytes at a time.

OpenSSL, given a socket, reads on until it has something for us; a peer that sends nothing but new keys holds it there
for as long as it likes. Here OpenSSL sees only what was read before.
"""

import errno
import socket
import ssl
from contextlib import suppress
from typing import Any

MAX_SHAKE = 16384  # bytes of a peer's part of the handshake; ours takes 2,500 at most
RECORD = 16384  # of TLS: no read gives more
CHUNKS = 4096, 65536  # bytes read at a time, at first and from a peer that sends much: the buffer stays as large
WRITE = 32768  # bytes encrypted at a time; the buffer stays as large
UNSENT = 64 * 1024  # bytes of TLS's own that a peer leaves unread: then it is no use


class Channel:
    """One end of a TLS connection. Methods raise OSError (ssl.SSLError is one) once it is of no more use.

    Args:
        sock: blocking or not; the channel's own from now on.
        context: what is trusted, and who we are.
        host: whose certificate the other side must have; None for the server's end.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str | None = None) -> None:
        self.overhead = 0
        """Bytes that came and were not for us: headers of records, and what TLS says to itself."""
        self._sock, self._in, self._out = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=host is None, server_hostname=host)
        self._encrypted = memoryview(b"")
        self._chunk = CHUNKS[0]
        self._shaken = 0

    def fileno(self) -> int:
        """The socket's number; -1 once it is closed."""
        return self._sock.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """How long a step may wait, None for ever; 0 does not block."""
        self._sock.settimeout(seconds)

    def shake(self, read: bool = True) -> bool:
        """A step of the handshake, with what has come if `read`: whether it is done. Raises BlockingIOError.

        A peer that needs more than MAX_SHAKE bytes for its part is refused.
        """
        if read:
            if not (came := self._read()):
                raise ConnectionResetError(errno.ECONNRESET, "closed in the handshake")
            self._shaken += came
            if self._shaken > MAX_SHAKE:
                raise ConnectionAbortedError(errno.ECONNABORTED, "a handshake that is too long")
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            return False
        except ssl.SSLError:
            with suppress(OSError):
                self.flush()  # it says why
            raise
        self.flush()
        return True

    def protocol(self) -> str | None:
        """What both sides speak above TLS, once that is agreed."""
        return self._tls.selected_alpn_protocol()

    def certificate(self) -> bytes | None:
        """The peer's (DER)."""
        return self._tls.getpeercert(binary_form=True)

    def named(self) -> Any:
        """The peer's certificate as `ssl.SSLSocket.getpeercert` has it; empty if it was not verified."""
        return self._tls.getpeercert() or {}

    def recv(self) -> bytes:
        """Bytes of one record; nothing at the end. Raises BlockingIOError if there are none, TimeoutError."""
        for again in (True, False):
            try:
                data = self._tls.read(RECORD)
            except ssl.SSLWantReadError:
                if again and not self._read():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""
            else:
                self.overhead -= len(data)
                return data
            finally:
                if self._out.pending:
                    self._answer()
        raise BlockingIOError

    def send(self, data: memoryview) -> int:
        """Take some bytes of `data`, and say how many. Raises BlockingIOError while those before have not left."""
        if not self.flush():
            raise BlockingIOError
        taken = self._tls.write(data[:WRITE])
        self.flush()
        return taken

    def flush(self) -> bool:
        """Send what is encrypted already; whether all of it has left."""
        while self._encrypted or self._out.pending:
            if not self._encrypted:
                self._encrypted = memoryview(self._out.read())
            try:
                self._encrypted = self._encrypted[self._sock.send(self._encrypted) :]
            except BlockingIOError:
                return False
        return True

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._sock.close()

    def shutdown(self) -> None:
        """Say no more."""
        self._sock.shutdown(socket.SHUT_WR)

    def _read(self) -> int:
        data = self._sock.recv(self._chunk)
        if len(data) == self._chunk:
            self._chunk = min(4 * self._chunk, CHUNKS[1])
        self.overhead += len(data)
        return self._in.write(data)

    def _answer(self) -> None:
        """Send what TLS answers by itself."""
        if not self.flush() and self._out.pending > UNSENT:
            raise ConnectionAbortedError(errno.ECONNABORTED, "it does not read what TLS answers")
