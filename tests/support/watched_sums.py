"""Links between a server and its sites that see what is said in secure sums, and sites that say nothing."""

from collections import defaultdict
from collections.abc import Mapping

from deployed import Direct, Site

from fedft.privacy.secure_sum.integer_uploads import RING
from fedft.privacy.secure_sum.messages import Step
from fedft.security.sealed import OVERHEAD, Kind
from fedft.update import TensorSpec
from fedft.wire import messages

Said = tuple[str, int, int]


def kind_of(sealed: bytes) -> Kind:
    """Of a sealed message."""
    return Kind(sealed[6])


def round_of(sealed: bytes) -> int:
    """That a sealed message is about."""
    return int.from_bytes(sealed[16:20], "little")


class Watching(Direct):
    """Notes what each site has said in each slot: the vectors that it has masked, and what it has opened."""

    numbers = 49
    """Of a vector: of the toy's fedit, two layers of rank 2, and the loss."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        super().__init__(sites)
        self.opened: dict[Said, set[bytes]] = defaultdict(set)
        self.vectors: dict[Said, set[bytes]] = defaultdict(set)

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        """What the site says to a message."""
        said = super().answers(site, payload)
        for answer in said:
            body = answer[OVERHEAD:]
            if body[:4] == b"FDSA" and body[6] == Step.OPENED:
                self.opened[site.name, int.from_bytes(body[8:12], "little"), body[7]].add(body)
            elif kind_of(payload) is Kind.TRAIN and kind_of(answer) is Kind.ANSWER:
                plan = messages.decode_plan(payload[OVERHEAD:], max_bytes=2**20)
                if "block" not in plan.extra:  # in the clear
                    continue
                spec = {RING: TensorSpec((self.numbers,), "int32")}
                vector = messages.decode_update(body, spec, "fp32").delta[RING].numpy().tobytes()
                self.vectors[site.name, int(plan.extra["block"]), int(plan.extra["slot"])].add(vector)
        return said

    def check(self) -> None:
        """A slot has one vector and one opening of each site, and there was something to see."""
        assert len(self.opened) > 5 < len(self.vectors)
        assert max(map(len, self.opened.values())) == 1
        assert max(map(len, self.vectors.values())) == 1


class Silent(Watching):
    """Sites that are asked to open a sum say nothing, while there is somebody in `mute`."""

    mute: tuple[str, ...] = ("anna", "bert")

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        """What the site says to a message."""
        asks = kind_of(payload) is Kind.SECAGG and payload[OVERHEAD + 6] == Step.UNMASK
        return [] if asks and site.name in self.mute else super().answers(site, payload)
