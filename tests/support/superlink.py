"""Flower's SuperLink, as an operator starts it who has one; DEPLOYMENT.md has the same words."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

START_S = 120.0


class SuperLink:
    """The command, with ca.pem, server.pem and server.key of a folder. Writes there, too."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.start()

    def start(self) -> None:
        """Start, or start again."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--isolation", "process", "--enable-supernode-auth"]
        words += ["--disable-runtime-dependency-installation", "--ssl-ca-certfile", str(self.folder / "ca.pem")]
        words += ["--ssl-certfile", str(self.folder / "server.pem"), "--ssl-keyfile", str(self.folder / "server.key")]
        quiet = {"FLWR_HOME": str(self.folder), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        command = [str(Path(sys.executable).with_name("flower-superlink")), *words]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while not self.listens():
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.05)

    def listens(self) -> bool:
        """Whether somebody answers at its port."""
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """End it, now."""
        self.process.kill()
        self.process.wait()
