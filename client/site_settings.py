"""What a site file says (`site_file` reads it): who we are, whom we talk to, and what we allow.

The server says what a run is; this file says where the model and the rows are, and its [policy] outranks the server.
"""

from dataclasses import dataclass, field
from typing import Literal

from fedft.config import Attention


@dataclass(frozen=True)
class Site:
    """[site]: the name of this site, and where it keeps what it needs between rounds."""

    name: str
    """As the server's operator enrolled us; at most 64 bytes."""
    state: str = "fedft-site"
    """Folder of what we keep between rounds: memory, uploads that are not yet acknowledged. Made when needed."""
    hours: str | None = None
    """When the site trains and evaluates, as in "22:00-06:00, sat-sun" (this machine's time) or
    "mon-fri 20:00-07:00, Europe/Berlin"; what was begun is finished. Left out: always."""
    max_mbit_s: float | None = None
    """Most megabits a second to the server, and as many from it; 1 or more. Left out: as the network carries."""


@dataclass(frozen=True)
class SiteServer:
    """[server]: the one machine that the site contacts, and how it is known to be the right one."""

    address: str
    """"host:port"."""
    ca: str = "keys/ca.pem"
    """Certificate of the authority that signed the server's; no other is trusted."""
    key: str = "keys/server.pub"
    """The server's public Ed25519 key: what it did not sign is not read."""


@dataclass(frozen=True)
class Keys:
    """[keys]: the site's own private keys."""

    folder: str = "keys"
    """Holds signing.key and node.key, readable by us alone."""
    roster: str | None = None
    """File with the public keys of all sites, from their operators and not from the server: for secure sums. Left out:
    this site takes part in none."""


@dataclass(frozen=True)
class SiteModel:
    """[model]: the base model; the server's must have the same digest."""

    id: str
    """Model folder, hub id, or "stdlib-base"."""
    device: str = "cpu"
    """torch device."""
    attention: Attention | None = None
    """How attention is computed, as in a run file; left out: what transformers chooses."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the base's weights in memory; where it or `base_bits` is said here, the server has no say in either. Left out:
    the run's. Refused (`base_precision`) where the strategy's clients must have the base in one precision."""
    base_bits: Literal[4, 8] | None = None
    """Bits of each frozen weight under adapters, as in a run file; left out: as `dtype` says, or the run."""


@dataclass(frozen=True)
class SiteData:
    """[data]: the site's rows. What is said here about their form outranks what the server says."""

    train: str | list[str]
    """A file, folder or pattern of files as in a run file, a list of them, or "stdlib-docstrings"."""
    test: str | list[str] | None = None
    """Held-out records; left out: the share of `train` that the server asks for. An empty file: none."""
    client: str | None = None
    """Field by which a shared file is filtered; left out: all rows are ours."""
    value: str | None = None
    """What that field says in rows of ours; left out: the site's name."""
    prompt: str | None = None
    """Template of what is given."""
    response: str | None = None
    """Template of what is learned."""
    chosen: str | None = None
    """Pairs of answers: template of the better one, or the field of its messages."""
    rejected: str | None = None
    """Pairs of answers: the same of the worse one."""
    messages: str | None = None
    """Field that holds a conversation; then `prompt` and `response` are not said here."""
    chat_template: str | None = None
    """A file with the Jinja template of conversations, or its text; left out: the tokenizer's own. A server's is only
    used if it is the same."""
    tokens: str | None = None
    """Field that holds token ids; then `prompt`, `response` and `messages` are not said here."""
    text: str | None = None
    """Classification: template of the input."""
    label: str | list[str] | None = None
    """Classification: field of the label, or one for each label."""


@dataclass(frozen=True)
class SiteLocal:
    """[local]: how the site uses its machine."""

    threads: int = 1
    """torch threads."""
    micro_batch: int | Literal["auto"] | None = None
    """Records in memory at once, as in a run file: gradients of so many are summed up to the run's `batch_size`."""
    checkpointing: bool = False
    """Compute activations again in place of keeping them: slower, for a small part of the memory."""
    deterministic: bool = False
    """Every sum has one order: the same bytes from run to run on devices of one kind, more slowly on CUDA."""
    compile: bool = False
    """Layers run as torch compiles them: faster behind a first step that takes long."""
    max_models: int = 1
    """Base models in memory at a time, where runs need unlike ones; the one used longest ago is unloaded for the next,
    and loaded again when its run goes on."""
    device_lock: str = ""
    """File that processes which share a GPU or CPU name, so that one of them carries out a request at a time; "": none.
    What each has loaded stays in memory."""


@dataclass(frozen=True)
class Policy:
    """[policy]: what a server may ask of the site; more is refused before any model is loaded."""

    strategies: list[str] = field(default_factory=list)
    """Strategies by name, exactly; empty: none. No other code is imported for a server."""
    codecs: list[str] = field(default_factory=list)
    """Codecs of installed packages, as a run file names them ("mine:0.5"); those that are built in are allowed."""
    plugins: list[str] = field(default_factory=list)
    """Adapters, objectives, optimizers and transforms of installed packages by name; those that are built in are
    allowed."""
    base: list[str] | None = None
    """Digests of base models, or their first 12 or more digits; left out: whatever [model] id is."""
    bits: list[int] = field(default_factory=lambda: [32, 16, 8, 4])
    """Bits of a base's weights that a server may ask for; what [model] says here is the site's own choice."""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Layers that may be trained, as in a run file; "all-linear" allows all of them, and full fine-tuning, but a
    regular expression only where it stands here itself."""
    max_rank: int = 64
    """LoRA rank."""
    max_steps: int = 1000
    """Optimiser steps per round."""
    max_learning_rate: float = 1e-2
    """Of the local optimiser."""
    max_batch_size: int = 64
    """Records per step."""
    max_tokens: int = 4096
    """Tokens per record, and per generated text."""
    max_download_mib: int = 4096
    """Memory, in MiB, of what a plan brings, and of what the site holds where that is added to it. A longer message is
    refused before it is taken in, and no tensor is decoded of more."""
    max_memory_mib: int | None = None
    """Memory, in MiB, of this process at its peak in a round, as `fedft plan` foresees it; left out: what the machine
    has."""
    approve: Literal["auto", "ask"] = "auto"
    """"ask": a run that this policy allows waits until `fedft site approve` says yes; "auto": it is taken up at once.
    A run that was refused by hand stays refused in both."""
    metrics: list[str] = field(default_factory=lambda: ["exact_match", "rouge_l"])
    """Metrics, beside loss and accuracy, that may be measured on our held-out rows; exactly these, empty: none."""
    require: list[Literal["secagg", "central-dp", "local-dp", "example-dp", "zo-dp"]] = field(default_factory=list)
    """The least privacy of a run: "secagg": secure sums; of the modes that are listed, one of these. []: none."""
    min_cohort: int = 3
    """Fewest sites of a secure sum."""
    max_epsilon: float | None = None
    """What all runs on our rows together may cost, at `delta`; a run without a mode has no bound, and is refused where
    this is said. Left out: the account is kept, and bounds nothing."""
    delta: float = 1e-5
    """The probability that `max_epsilon` does not hold; well below one over the number of rows."""
    seeded_noise: bool = False
    """Whether a run may have `[privacy] noise = "seeded"`, which hides nothing: for rehearsals on rows that are not
    secret."""


@dataclass(frozen=True)
class SiteProfile:
    """[profile]: what the site says of itself to servers, so that they ask for what it can carry."""

    share: list[Literal["memory", "link", "speed"]] = field(default_factory=lambda: ["memory"])
    """"memory": [policy] max_memory_mib, where it is said; "link": [site] max_mbit_s, where it is said; "speed": with
    every update how long its local steps took, and how much memory the process has had. []: nothing."""


@dataclass(frozen=True)
class SitePrivacy:
    """[privacy]: what this site's own noise goes by; the server says the rest."""

    rows: int | None = None
    """Number of records that the probability of one being in a batch is computed from, for the whole of every run that
    begins now. Left out: as there are when a run begins, rounded down to two digits."""


@dataclass(frozen=True)
class SiteAudit:
    """[audit]: secrets that this site plants among its own rows, so that it can be measured what a model gives away."""

    canaries: int = 0
    """Records with a random secret; half of them, by coin, are trained on beside the site's rows. Which, and the
    secrets, is in `audit-plan.json` in the state folder; a server that is given that file can measure exposure. They
    are trained on in every run that begins from now on, and make its model a little worse."""
    repeats: list[int] = field(default_factory=lambda: [1, 4, 16])
    """How often a canary stands among the rows; dealt out in turn."""
    seed: int | None = None
    """Of the secrets and the coins. Left out: drawn when the first are planted, and kept in their plan; a number that
    somebody else can guess tells them the secrets."""


@dataclass(frozen=True)
class SiteConfig:
    """A whole site file, one field per table. All paths are absolute."""

    site: Site
    server: SiteServer
    model: SiteModel
    data: SiteData
    keys: Keys = Keys()
    local: SiteLocal = SiteLocal()
    policy: Policy = Policy()
    profile: SiteProfile = SiteProfile()
    privacy: SitePrivacy = SitePrivacy()
    audit: SiteAudit = SiteAudit()
