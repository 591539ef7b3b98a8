"""What may be asked of a running server by `fedft admin RUN ...`; `admin_socket` carries it.

    {"act": "set", "keys": ["server.quorum=0.5"]}     {"said": ["server.quorum from 0.6 to 0.5, at once"]}

An act is checked as the run file is, stands in the audit with the uid that asked, is on the disk, and then acts; `Acts`
says from when on. An act that nobody was told of because the server was killed is done or not, and may be asked again.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedft import check
from fedft.board.run_status import RunReader
from fedft.errors import ConfigError, FedftError, in_one_line
from fedft.security import roster as keys
from fedft.security.roster import MAX_CARD_BYTES
from fedft.server.admin_socket import Request
from fedft.server.audit import Audit
from fedft.server.federation import Federation
from fedft.server.roster_file import RosterFile
from fedft.server.steering import Steering

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acts:
    """What may be asked of a running server. Each act returns what was done, and from when on, in lines."""

    federation: Federation
    steering: Steering
    roster: RosterFile
    path: Path
    """Of the roster."""
    folder: Path
    """Of the run."""
    audit: Audit

    def answer(self, request: Request, uid: int) -> dict[str, Any]:
        """Do an act. Raises FedftError, in one line, where it cannot be done; then the audit says so."""
        acts: dict[str, Callable[[Request, str], dict[str, Any]]] = {
            "sites": self.sites, "enrol": self.enrol, "revoke": self.revoke, "remove": self.remove, "lift": self.lift,
            "pause": self.pause, "resume": self.resume, "set": self.set,
        }  # fmt: skip
        act = request.get("act")
        if not isinstance(act, str) or act not in acts:
            raise ConfigError(f"no act {act!r:.80}; wanted one of {', '.join(acts)}")
        try:
            found = acts[act](request, f"uid {uid}")
        except FedftError as e:
            self.audit.write("admin", act=act, uid=uid, failed=in_one_line(e))
            raise
        for line in found.get("said", ()):
            log.warning("uid %d: %s", uid, line)
        return found

    def sites(self, request: Request, by: str) -> dict[str, Any]:
        """A row for each site of the roster, and of the run."""
        status = {s["name"]: s for s in RunReader(self.folder).status()["sites"]}
        members, removed = self.federation.membership, self.steering.removed
        present = self.roster.present()
        rows = []
        for name in sorted({*self.roster.members, *members.places}, key=str.encode):
            told = status.get(name, {})
            state = "removed from this run" if name in removed else self.roster.why_not(name)
            rows.append(
                {
                    "site": name, "roster": state or "enrolled", "run": told.get("state"),
                    "member": name in members.present, "rank": members.rank(name) if name in members.places else None,
                    "max_examples": present.get(name), "counted": told.get("counted", 0),
                    "refused": told.get("refused", 0),
                }
            )  # fmt: skip
        return {"sites": rows}

    def enrol(self, request: Request, by: str) -> dict[str, Any]:
        """Take the site of a card into the roster, or back into the run: from the next round that begins on."""
        text, file = (str(request.get(k, "")) for k in ("card", "file"))
        with tempfile.TemporaryDirectory() as folder:
            card = Path(folder) / (Path(file).name or "card")
            card.write_text(text[: MAX_CARD_BYTES + 1], encoding="utf-8")
            try:
                site = keys.read_card(card)
                self._written(by, "enrol", site=site.name, fingerprint=site.fingerprint())
                keys.enrol(self.path, card)
            except ConfigError as e:
                raise ConfigError(str(e).replace(str(card), file)) from None
        if site.name in self.steering.removed:
            self.steering.take_back(site.name)
        return _said(f"enrolled {site.name}, fingerprint {site.fingerprint()}: from the next round on")

    def revoke(self, request: Request, by: str) -> dict[str, Any]:
        """Let a site's keys count no longer, in any run of this roster: at once."""
        site = self._site(request)
        self._written(by, "revoke", site=site)
        keys.revoke(self.path, site)
        return _said(f"revoked {site}: at once; an update of its that was admitted counts")

    def remove(self, request: Request, by: str) -> dict[str, Any]:
        """Take a site out of this run, not out of the roster: at once."""
        site = self._site(request)
        self._written(by, "remove", site=site)
        self.steering.remove(site, by)
        return _said(f"removed {site} from this run: at once; its card, enrolled again, takes it back")

    def lift(self, request: Request, by: str) -> dict[str, Any]:
        """End a site's quarantine: from the next round that begins on."""
        site = self._site(request)
        if site not in self.federation.barred:
            raise ConfigError(f"{site} is not in quarantine")
        self._written(by, "lift", site=site)
        return _said(f"lifted the quarantine of {site}: from round {self.steering.lift(site, by)} on")

    def pause(self, request: Request, by: str) -> dict[str, Any]:
        """Let no round begin: once the open one is over and evaluated."""
        self._written(by, "pause")
        self.steering.pause(by)
        return _said("paused: once the open round is over")

    def resume(self, request: Request, by: str) -> dict[str, Any]:
        """Let rounds begin again: at once."""
        self._written(by, "resume")
        self.steering.resume()
        return _said("resumed: at once")

    def set(self, request: Request, by: str) -> dict[str, Any]:
        """Change keys, `KEY=VALUE` as for `--set`: see `fedft.server.steering` for from when on."""
        texts = request.get("keys")
        if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
            raise ConfigError("set: wanted KEY=VALUE")
        values = self.steering.check(texts)
        self._written(by, "set", keys=list(texts))
        changed = self.steering.set(values, by)
        when = {"limits": "from the next round on", "eval": "from the next evaluation on", "server": "at once"}
        lines = [f"{k} from {was} to {now}: {when[k.partition('.')[0]]}" for k, (was, now) in changed.items()]
        return _said(*(lines or ["nothing changed: it is so already"]))

    def _site(self, request: Request) -> str:
        """The site that a request names. Raises ConfigError for one that the roster does not know."""
        name = request.get("site")
        if not isinstance(name, str) or name not in (known := self.roster.members):
            near = check.nearest(name, known) if isinstance(name, str) else ""
            raise ConfigError(f"no site {name!r:.80} in {self.path}{near}")
        return name

    def _written(self, by: str, act: str, **facts: Any) -> None:
        self.audit.write("admin", act=act, uid=int(by.removeprefix("uid ")), **facts)


def _said(*lines: str) -> dict[str, Any]:
    return {"said": list(lines)}
