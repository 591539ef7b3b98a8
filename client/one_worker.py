"""The one thread of a process that trains: for one site, or for sites of several servers in the order of requests."""

import logging
import threading
from queue import Empty

from fedft.client.requests import Requests
from fedft.client.resident_models import ResidentModels

log = logging.getLogger(__name__)


class Worker:
    """Carries out the requests of all responders that are given its `requests`, on base models that they share."""

    def __init__(self, max_models: int = 1) -> None:
        """`max_models`: base models in memory at a time."""
        self.models, self.requests = ResidentModels(max_models), Requests()

    def start(self, stop: threading.Event) -> None:
        """Work in a thread of its own until `stop` is set."""
        threading.Thread(target=self._work, args=[stop], name="worker", daemon=True).start()

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                responder, opened, reply = self.requests.get(timeout=1.0)
                responder.carry_out(opened, reply)
            except Empty:
                continue
            except Exception:  # an answer that could not be sent; the server asks again
                log.exception("the worker failed")
