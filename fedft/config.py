"""A run file (TOML) becomes a frozen, checked `RunConfig`: one dataclass per table, one checker for all of them.

Unknown tables and keys are refused with the nearest known one; "off" is a key left out, never -1. Any table may hold
sub-tables named after strategies, whose keys win when that strategy runs:

    [local]                      [local.fedkseed]           [clients.fedit]
    learning_rate = 1e-2         learning_rate = 1e-4       rank = 8

so one file compares methods that need different steps or ranks on the same data.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_type_hints

from fedft import check, quickstart
from fedft.compression import codec_names
from fedft.privacy.tables import Audit, Privacy, Robust
from fedft.registry import IN_JOBS, PREFERENCES, Choice, Registry, named

DTYPES = ("auto", "float32", "bfloat16", "float16")
DTYPE_ALIASES = {"fp32": "float32", "float": "float32", "bf16": "bfloat16", "fp16": "float16"}
BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
"""No others: transformers takes the names of hub folders too, and runs the code in them."""
BUDGETS = ("bytes", "steps", "seconds")
ALL = frozenset("*")
LOCAL: Mapping[str, Collection[str]] = {
    "model": frozenset({"attention", "device", "id"}),
    "data": frozenset({"train", "test", "partition", "client", "clients", "alpha", "min_rows", "encode"}),
    "local": frozenset({"threads", "micro_batch", "checkpointing", "deterministic", "compile"}),
    "server": ALL,
    "clients": ALL,
    "limits": frozenset({"max_norm", "norm_factor", "max_num_examples", "max_bytes", "quarantine_after"}),
    "privacy": frozenset({"max_epsilon", "cohort", "adaptive_quantile", "clip_learning_rate", "evaluate"}),
    "robust": ALL,
    "audit": ALL,
    "eval": frozenset({"best", "prompts"}),
}
"""Keys by table that never travel with a job, or ALL of a table. Whatever else a run file has does, new tables too."""
OTHER_TOOLS: Mapping[str, str] = {
    **dict.fromkeys(("num_epochs", "num_train_epochs", "local_epochs"), "[local] epochs"),
    "max_steps": "[local] steps",
    "per_device_train_batch_size": "[local] batch_size, or micro_batch",
    "micro_batch_size": "[local] micro_batch",
    "gradient_accumulation_steps": "[local] micro_batch, and a batch_size that is so many times as large",
    "gradient_checkpointing": "[local] checkpointing",
    **dict.fromkeys(("lr", "eta", "client_lr"), "[local] learning_rate"),
    **dict.fromkeys(("max_norm_grad", "gradient_clipping", "clip_grad_norm"), "[local] max_grad_norm"),
    **dict.fromkeys(("optim", "optimizer_type"), "[local] optimizer"),
    **dict.fromkeys(("wd", "adam_weight_decay"), "[local] weight_decay"),
    **dict.fromkeys(("sample_packing", "pack_sequences"), "[local] packing"),
    **dict.fromkeys(("neftune_noise_alpha", "noisy_embedding_alpha"), "[local] neftune_alpha"),
    **dict.fromkeys(("torch_compile",), "[local] compile"),
    **dict.fromkeys(("full_determinism",), "[local] deterministic"),
    **dict.fromkeys(("dpo_beta", "pref_beta"), '[local] objective, as { name = "dpo", beta = 0.1 }'),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type"), "[local] schedule"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "[local] warmup, a share of the schedule"),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "[clients] rank"),
    "alpha_lora": "[model] lora_alpha",
    **dict.fromkeys(("peft_type", "adapter_type", "finetuning_type"), "[model] adapter, or another [strategy] name"),
    **dict.fromkeys(("attn_implementation", "flash_attention", "flash_attn"), "[model] attention"),
    **dict.fromkeys(("device_map", "accelerator"), "[model] device"),
    **dict.fromkeys(("num_labels", "id2label", "label2id"), "[model] labels, the names in order"),
    **dict.fromkeys(("target_modules", "lora_target_modules"), "[model] targets"),
    **dict.fromkeys(("fp16", "bf16", "torch_dtype"), "[model] dtype"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization"), "[model] base_bits, 4 or 8"),
    **dict.fromkeys(("model_name_or_path", "base_model"), "[model] id"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "cutoff_len"), "[data] max_length"),
    **dict.fromkeys(("dataset", "dataset_name", "train_file", "data_path"), "[data] train"),
    **dict.fromkeys(("validation_file", "eval_dataset", "val_set_size"), "[data] test, or holdout"),
    **dict.fromkeys(("prompt_template", "instruction_template"), "[data] prompt and response"),
    **dict.fromkeys(("dirichlet_alpha", "concentration"), '[data] partition = "dirichlet" and alpha'),
    **dict.fromkeys(("num_rounds", "num_server_rounds", "comm_round", "total_rounds"), "[server] rounds"),
    **dict.fromkeys(("random_seed", "data_seed"), "[server] seed"),
    **dict.fromkeys(("report_to", "log_with"), "[server] loggers"),
    **dict.fromkeys(("min_fit_clients", "min_available_clients", "min_clients"), "[server] quorum, a share"),
    **dict.fromkeys(("round_timeout", "fit_timeout"), "[server] deadline_s"),
    **dict.fromkeys(("num_clients", "num_supernodes"), "[data] clients"),
    **dict.fromkeys(("fraction_fit", "fraction_train", "clients_per_round"), "[clients] per_round"),
    **dict.fromkeys(("fraction_evaluate", "fraction_eval"), "[eval] clients"),
    **dict.fromkeys(("eval_steps", "evaluation_strategy", "eval_strategy"), "[eval] every, in rounds"),
    **dict.fromkeys(("early_stopping_patience", "early_stopping_rounds"), "[server] patience, in evaluations"),
    **dict.fromkeys(("early_stopping_threshold",), "[server] min_delta"),
    **dict.fromkeys(("metric_for_best_model", "load_best_model_at_end"), "[eval] best, the name of a metric"),
    **dict.fromkeys(("max_new_tokens",), "[eval] generate_tokens"),
    **dict.fromkeys(("clipping_norm", "max_clip_norm", "l2_norm_clip"), "[privacy] clip"),
    **dict.fromkeys(("target_epsilon",), "[privacy] epsilon"),
    **dict.fromkeys(("num_byzantine", "num_malicious_clients"), "[robust] f"),
}
"""What a run file has for keys of other tools that mean the same, or nearly."""


def instead_of(key: str, table: type) -> str:
    """The end of an error message on a key that the class of a table lacks: where it is, or what there is for it."""
    tables = {name: get_type_hints(kind) for name, kind in get_type_hints(RunConfig).items()}
    of_run = table in get_type_hints(RunConfig).values()
    if of_run and key in OTHER_TOOLS:
        return f"; wanted {OTHER_TOOLS[key]}"
    if near := check.nearest(key, known := get_type_hints(table)):
        return near
    if of_run and (there := [f"[{name}]" for name, keys in tables.items() if key in keys]):
        return f"; it is a key of {' and of '.join(there)}"
    return f"; it has {', '.join(known)}"


@dataclass(frozen=True)
class Model:
    """[model]: what is fine-tuned, and which of its layers."""

    id: str = quickstart.BASE
    """Model folder, hub id, or "stdlib-base" (the small built-in base)."""
    adapter: Choice = "lora"
    """Kind of adapter, for strategies that take any: "lora", an installed one, "package.module:Kind", or a table of
    its name and options."""
    task: str = "causal-lm"
    """"causal-lm", "seq2seq-lm" (an encoder-decoder: T5, BART and their kin) or "sequence-classification"."""
    targets: str | list[str] = "all-linear"
    """Layers that get an adapter: "all-linear" (experts too), endings of names such as ["q_proj", "attn.v_proj"], which
    match at dots ("gate_up_proj": the matrices of all experts in it), or regular expressions for whole names, as in
    're:.*layers\\.[0-3]\\..*_proj'."""
    layers: str | None = None
    """Numbers of the model's layers that targets are taken from, as in "0-3, 8"; left out: all."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules trained and saved whole beside the adapters, as ["lm_head", "embed_tokens", "norm"]: endings of names,
    which match at dots. Strategies treat them as a classifier's head: averaged, or kept where heads are. Tied ones are
    named together."""
    lora_alpha: float | None = None
    """LoRA scale is lora_alpha / rank; left out: alpha = 2 rank."""
    lora_dropout: float = 0.0
    """Dropout before the LoRA factors, in training."""
    dtype: str = "auto"
    """Resident base weights: float32, bfloat16, float16, or "auto", which a run resolves when it begins: the file's own
    on a CUDA device that computes it, else float32. Adapters are float32. "fp32" and "float", "bf16", "fp16" are taken
    for the long names."""
    base_bits: Literal[4, 8] | None = None
    """Bits of each frozen weight in linear layers of the body, under adapters: 4 (NF4, whose scales are quantised once
    more: 4.13 bits in all) or 8 (integers times a scale of 64 weights: 8.25). Layers that are trained whole, experts
    that lie in one parameter, embeddings, norms and the output stay as they are. Left out: as `dtype` says. A site
    whose own file says its `dtype` or `base_bits` goes by that, where the strategy's clients need not have one base."""
    repair_rank: int | None = None
    """Where weights are packed: rank of a frozen pair beside each, which repairs what packing lost of it as well as so
    many ranks can (LoftQ's start, as a part of the base). Left out: none."""
    device: str = "cpu"
    """torch device of the base model."""
    attention: Attention | None = None
    """How attention is computed, in transformers' words; left out: what transformers chooses."""
    labels: list[str] = field(default_factory=list)
    """Classification: the names of classes or labels, in order; of the outputs of a regression, left out: "value"."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    """Classification, in transformers' words: a record has one class, any number of labels, or numbers to fit."""

    @property
    def bits(self) -> int:
        """Of each of the base's frozen weights; 32 for "auto", which no run has that has begun.

        >>> Model(dtype="bfloat16").bits, Model(dtype="bfloat16", base_bits=4).bits
        (16, 4)
        """
        return self.base_bits or BITS.get(self.dtype, 32)


@dataclass(frozen=True)
class Data:
    """[data]: records, how they become text, and whose they are."""

    train: str | list[str] = quickstart.ROWS
    """A file of JSON lines, JSON, CSV, TSV or Parquet, a folder or a pattern ("visits/*.csv") of them, a hub id
    owner/name[[:configuration]:split], or "stdlib-docstrings" (built in); or a list of such, one behind the other."""
    test: str | list[str] | None = None
    """Held-out records, named in the same way; left out: `holdout` of each client's own rows."""
    holdout: float = 0.2
    """Fraction of each client's rows held out when there is no `test`."""
    prompt: str = "{prompt}"
    """Template of what is given; its tokens are masked out of the loss. "" learns on all tokens. Of an encoder-decoder
    it is all that the encoder reads, and not ""."""
    response: str = "{response}"
    """Template of what is learned."""
    chosen: str = "{chosen}"
    """Objectives "dpo" and "orpo": template of the better answer to `prompt`. A field that holds a list of messages is
    a conversation, as for `messages`; where it and `rejected` part, the answers begin."""
    rejected: str = "{rejected}"
    """Objectives "dpo" and "orpo": template of the worse answer."""
    messages: str | None = None
    """Field that holds a conversation, a list of {role, content} or ShareGPT's {from, value}: all turns of the
    assistant are learned, by the chat template; `prompt` and `response` have no part in it. Left out: they are used."""
    chat_template: str | None = None
    """For conversations: a file with a Jinja template, or its text; left out: the tokenizer's own. A site takes none
    from a server but the one that its own file says."""
    tokens: str | None = None
    """Field that holds token ids of the base model's own tokenizer, special tokens among them; a field `labels`, if
    there is one, says which are learned. `prompt` and `response` have no part in it."""
    encode: str | None = None
    """"package.module:function", in place of all templates: your own function (record, tokenizer) -> (token ids, of
    each whether it is learned). A site says its own; none travels. CONTRIBUTING.md has an example."""
    text: str = "{text}"
    """Classification: template of the input."""
    label: str | list[str] = "label"
    """Classification: field of the label, a list of them, or a number; or a field for each of `[model] labels`, with 0
    or 1 or with numbers."""
    partition: Choice = "natural"
    """"natural" (by `client`), "iid", "dirichlet", "flwr" (any of flwr-datasets), an installed one or
    "package.module:factory", or a table of its name and options."""
    client: str = "client"
    """Field that names the owner of a record (natural), or that is skewed (dirichlet)."""
    clients: int | None = None
    """Number of clients; natural: keep the first so many in order of name."""
    alpha: float = 0.5
    """Dirichlet concentration; small is more skewed."""
    min_rows: int = 1
    """Clients with fewer rows take no part, and are named."""
    max_length: int | Literal["auto"] = "auto"
    """Tokens per record, of an encoder-decoder per side; what becomes of longer ones says `too_long`. "auto", resolved
    when a run begins: 1024, or what the model has positions for or the tokenizer allows where that is less."""
    max_prompt: int | None = None
    """Tokens of the prompt, cut from the left; left out: what the response leaves, or half of max_length where that is
    more. Of an encoder-decoder: cut from the right; left out: max_length."""
    too_long: Literal["cut", "drop", "refuse"] = "cut"
    """Records that do not fit: cut to fit, left out, or the run is refused; counted in any case."""

    @property
    def length(self) -> int:
        """`max_length` of a run that has begun, in which it is a number."""
        assert self.max_length != "auto", "`models.dtypes.resolved` comes before rows are encoded"
        return self.max_length


@dataclass(frozen=True)
class Strategy:
    """[strategy]: name and the factory's own options."""

    name: str = "flora"
    """A built-in or installed strategy, or "package.module:factory"."""
    options: dict[str, Any] = field(default_factory=dict)
    """All other keys of the table; see the factory's docstring."""


@dataclass(frozen=True)
class Local:
    """[local]: what a client does in one round."""

    steps: int = 40
    """Optimiser steps."""
    epochs: float | None = None
    """Passes over a client's own rows, in place of `steps`: as many steps as batches hold its rows so often, rounded
    up. Whoever has more rows takes more steps then."""
    batch_size: int = 8
    """Records per step."""
    learning_rate: float = 1e-2
    """Of the local optimiser; zeroth-order methods need much smaller ones."""
    learning_rate_decay: float = 1.0
    """Factor on the learning rate from one round to the next."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on behind the warm-up: as it is, or down to 0 in a line or half a wave."""
    warmup: float = 0.0
    """Share of the schedule in which the learning rate rises from almost 0; 0.03 to 0.1 is usual."""
    schedule_over: Literal["run", "round"] = "run"
    """What a schedule is long: all rounds of `[server] rounds`, a step from round to round, or the steps of each round
    anew (of methods that back-propagate)."""
    optimizer: Choice = "adamw"
    """"adamw", "sgd", another of torch ("adafactor", "adagrad", "adam", "adamax", "muon", "nadam", "radam", "rmsprop"),
    of bitsandbytes ("adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit") or of
    schedulefree ("schedule_free_adamw", "schedule_free_sgd"), an installed one or "package.module:factory", or a table
    of its name and options; fresh in every round."""
    keep_optimizer: bool = False
    """What the optimiser remembers (moments, counts) stays with each client from a round that counted to its next one;
    of methods that back-propagate."""
    trainer: Choice | None = None
    """Whose loop takes the steps: "transformers" (its Trainer), "trl_sft" or "trl_dpo" (TRL's SFTTrainer, DPOTrainer),
    or a table of the name and what it is told besides, as in { name = "trl_dpo", beta = 0.05 }: its own loss, schedules
    and optimisers. Rows, their order and number, and the other keys stay as they are. Left out: fedft's own."""
    objective: Choice = "likelihood"
    """What is learned: "likelihood", "dpo" or "orpo" (pairs of answers, see `chosen`), an installed one,
    "package.module:factory", or a table of its name and options, as in { name = "dpo", beta = 0.1 }."""
    transforms: list[Choice] = field(default_factory=list)
    """What happens to a client's result on its way out, each as the objective is named: clipping, noise..."""
    momentum: float = 0.0
    """Of "sgd"."""
    weight_decay: float = 0.0
    """Of the first-order optimisers; FedKSeed has its own."""
    max_grad_norm: float | None = 1.0
    """Clip of the gradient's L2 norm per step; 1e9: none."""
    packing: bool = False
    """Rows of a batch are laid one behind the other into sequences of at most `max_length` tokens, in place of padding
    each to the longest: the same loss and gradients but for the rounding of sums, for fewer tokens. Refused for models
    that do not keep such rows apart, which is tried before the run."""
    micro_batch: int | Literal["auto"] | None = None
    """Records whose activations are in memory at once: gradients of so many are summed until `batch_size` have been
    seen, each token with the weight that it has in the whole batch. The same step but for the rounding of sums, where
    there is no dropout. "auto": all, and half as many each time that the device's memory is too small. Left out: all.
    """
    checkpointing: bool = False
    """Activations of a layer are computed again when gradients need them, in place of being kept: about a third more
    time, for a small part of the memory. The same step, bit for bit."""
    autocast: bool = False
    """Forward passes, and so gradients, multiply matrices in bfloat16 while adapters stay float32, as do optimiser and
    updates: faster on devices that compute it, for less memory; other bytes than without."""
    neftune_alpha: float | None = None
    """Noise on the embeddings of a batch in training (NEFTune); 5 to 15 are usual. Left out: none."""
    deterministic: bool = False
    """Every sum of a local step has one order: the same bytes from run to run on devices of one kind, more slowly on
    CUDA; an operation that has no such form ends the run. A CPU has one order without it."""
    compile: bool = False
    """Layers run as torch compiles them, which makes the first step a long one: of methods that back-propagate, one
    client at a time. Other bytes than without, by the rounding of sums."""
    threads: int = 1
    """torch threads; one is never far from best for small models and does not collapse on a busy machine."""

    def steps_over(self, rows: int) -> int:
        """The optimiser steps of a round of a client with so many rows.

        >>> Local(epochs=2, batch_size=8).steps_over(17), Local(steps=5).steps_over(17)
        (5, 5)
        """
        return self.steps if self.epochs is None else max(1, math.ceil(self.epochs * rows / self.batch_size))

    @property
    def pairs(self) -> bool:
        """Whether the objective is one of this package that learns from pairs of answers."""
        return named(self.objective, "objective")[0] in PREFERENCES


@dataclass(frozen=True)
class Codecs:
    """[codec]: how tensors are written on the wire."""

    up: str = "fp32"
    """Client to server: fp32, fp16, bf16, int8, int4, "ternary:0.5", "compeft:0.1,2", "topk:0.1 | int8"...;
    see fedft/compression/codec_names.py.
    """
    down: str = "fp32"
    """Server to client: the state in fp32, fp16, bf16, int8, or one of them behind "topk:1 |" where most numbers are
    zero. Or what each round changed in it, in any codec behind "delta |": "delta | int8", "delta | int4"..."""
    error_feedback: bool | None = None
    """Clients add what the codec left out to their next update; not said: where it leaves out much and they can."""

    @property
    def plans(self) -> str:
        """The codec of the messages that go down."""
        return codec_names.downloads(self.down)[0]

    @property
    def changes(self) -> str:
        """The codec of the changes that they bring; "" where they bring the state itself."""
        return codec_names.downloads(self.down)[1]


@dataclass(frozen=True)
class Server:
    """[server]: rounds and when one ends."""

    rounds: int = 5
    """Rounds of the run; a finished run may be resumed with more."""
    budget: str | None = None
    """End at the last round that fits "bytes=2e7" (training traffic of all clients, both ways), "steps=400" (rounds x
    [local] steps) or "seconds=60" (training and aggregation; virtual ones with `[clients] devices`); left out: all
    rounds."""
    seed: int = 0
    """Everything random that must be repeatable derives from it."""
    workers: int | list[str] | None = None
    """Simulations: so many processes with a base model each, on `[model] device` ("cuda": in turn on all that there
    are), or one for each device of a list, as ["cuda:0", "cuda:1"], whose first is `[model] device` then. Each trains
    and measures its share of the clients, dealt out by name; the run's bytes are those of one process. Another number
    may go on with a run. Left out: all in this process."""
    ray: str | None = None
    """The workers are actors of Ray, on any machines of its cluster: "auto" or its address ("host:6379",
    "ray://host:10001"), or "local" for one that is started here (`pip install 'fedft[ray]'`). An actor has a GPU of its
    own where its device is "cuda", and `[local] threads` CPUs. Model, data and run folder are at the same paths on all
    machines, and fedft, torch, numpy and transformers of the same versions, or the run ends before it trains."""
    together: int | Literal["auto"] | None = None
    """Simulations: clients that train in one pass of the base model, where the strategy and the model allow it (plain
    back-propagation on adapters, no dropout); memory of activations grows with it. 1 is exactly what a deployment does.
    "auto": as many as pay by the tokens of a batch and the device, and as half of the free memory holds by what a pass
    of one client is measured to keep; never by the clock. Left out: 1 on a CPU, "auto" on an accelerator. Several times
    as fast where batches are short. The same number gives the same bytes again, but they differ from those of 1 in the
    rounding of sums (updates by less than 1e-4 of themselves), and those of a run that was interrupted inside a round,
    or goes on with another number of `workers`, may."""
    quorum: float = 2 / 3
    """Share of those asked that must be admitted, rounded up."""
    deadline_s: float | None = None
    """A round closes after so many seconds if quorum is met; left out: an hour in a deployment and with virtual devices
    (`[clients] devices`), by whose seconds it goes then, and never in other simulations."""
    patience: int | None = None
    """The run ends when so many evaluations in a row have brought nothing better than the best before, by
    `[eval] best`, or by the loss. Left out: it goes to its last round or its budget."""
    min_delta: float = 0.0
    """For `patience`: what is better by no more than this does not count."""
    grace_s: float = 30.0
    """Seconds to wait for the rest once quorum is met and a deadline is set, or holds as above."""
    gates: list[Choice] = field(default_factory=list)
    """What has to agree before a state is committed, each by name, "package.module:factory", or a table."""
    attempts: int = 3
    """Tries per round below quorum before the run pauses."""
    buffer: int | None = None
    """Rounds that do not wait: a version is made of the first so many updates that count, while those who are not ready
    go on with theirs, from the older state, and count in the round in which they come, for less (FedBuff). At any time
    `[clients] per_round` clients are at work. Of methods that add a mean of changes, and FLoRA; in a simulation with
    `[clients.devices]`. `grace_s` has no part in it. Left out: a round waits for those that it has asked."""
    max_staleness: int = 20
    """With `buffer`: versions that the state may have gone on since a client was asked; what is older is dropped and
    counted, and its client free to be asked anew."""
    loggers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Who else is told of every line of metrics: "tensorboard" (the folder events/ of the run), "wandb", "mlflow" and
    "trackio" (on this machine, unless WANDB_MODE, MLFLOW_TRACKING_URI or TRACKIO_SPACE_ID say otherwise), "otel" (a
    collector of OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT names one), or another package's by its name or as
    "package.module:logger". []: nobody."""
    archive: bool = False
    """Keep every round's plans and updates, compressed, in the folder archive/ of the run, in a chain of digests; grows
    by what is sent up. `fedft records verify` checks it. May change when a run is resumed."""


@dataclass(frozen=True)
class DeviceClass:
    """One of [clients.devices] classes: how fast some of the devices are."""

    flops: float
    """Floating-point operations of training in a second."""
    share: float = 1.0
    """How many of the clients have such a device, in proportion to the other classes."""
    up: float | None = None
    """Bytes in a second from the client to the server; left out: what is sent takes no time."""
    down: float | None = None
    """Bytes in a second from the server to the client; left out: what is sent takes no time."""
    memory: int | str | None = None
    """Bytes, or as "2GiB", "500MB": what the client says that a turn may take. Planners go by it, nothing else does."""


@dataclass(frozen=True)
class Devices:
    """[clients.devices]: what each client of a simulation trains on, by whose virtual seconds its rounds go."""

    classes: list[DeviceClass]
    """Tables, as {share = 30, flops = 2e9, up = 1e6, down = 4e6, memory = "2GiB"}; dealt out by name from the seed."""
    jitter: float = 0.0
    """Below 1: the share by which a turn's arithmetic takes longer or shorter at most, drawn for each client and round.
    """
    hidden: bool = False
    """Whether clients say nothing of their devices when they enrol: a planner then has their seconds only."""
    availability: str | list[list[list[float]]] = field(default_factory=list)
    """Traces, each a list of [from, to] in virtual seconds, within which a device is on and works; dealt out by name
    from the seed. Or a JSON file of such a list. Left out: every device is always on."""
    period_s: float | None = None
    """Virtual seconds after which traces begin anew; left out: each at its own last `to`."""
    dropout: float = 0.0
    """Probability that a client vanishes in a round, and never answers in it."""


@dataclass(frozen=True)
class Clients:
    """[clients]: who takes part, with what."""

    per_round: int | None = None
    """Clients asked per round, drawn from the seed; left out: all."""
    plan: Choice | None = None
    """Who does how much (rank by module, steps) in a round: a planner by name, "package.module:factory", or a table."""
    rank: int | list[int] = 8
    """LoRA rank of all clients, or a list dealt out in order of name."""
    devices: Devices | None = None
    """Simulations: the table [clients.devices], virtual devices. Rounds then end as in a deployment, by `[server]`
    quorum, deadline and grace, in virtual seconds; a deployment leaves it aside. Left out: no device is slower than
    another, and only the clock on the wall counts."""


@dataclass(frozen=True)
class Limits:
    """[limits]: what one client's update may be."""

    max_norm: float | None = None
    """Refuse updates whose norm (of the product, for pairs) is larger."""
    norm_factor: float = 100.0
    """Refuse norms above so many times the median of those admitted lately."""
    max_num_examples: int = 1_000_000
    """Refuse updates that claim more rows."""
    max_share: float | None = None
    """Largest weight of one client among three or more; what is above is cut, and said. 1.0: no such limit. Left out:
    1.0 in a simulation, 0.5 in a deployment; `config.toml` and the job have which."""
    max_bytes: int | None = None
    """Refuse larger messages; left out: 1.05 x the largest legal one + 64 KiB."""
    quarantine_after: int = 3
    """Refusals in 10 rounds after which a client is not asked any more."""

    def share(self, deployed: bool) -> float:
        """`max_share`; where it is left out the published weights in a simulation, and half of all in a deployment."""
        return self.max_share if self.max_share is not None else 0.5 if deployed else 1.0


@dataclass(frozen=True)
class Eval:
    """[eval]: what is measured on held-out rows."""

    every: int = 1
    """Rounds between evaluations; the last state is always evaluated."""
    clients: int | None = None
    """Evaluate on so many clients, the same ones every time; left out: all."""
    max_rows: int | None = None
    """Held-out rows per client, the first so many."""
    batch_size: int = 16
    """Rows per forward pass."""
    exactness: bool = True
    """Measure every round how far the aggregate of LoRA pairs is from the mean of their products; on a sample of the
    modules, which the log names the size of, where all would take much time or memory."""
    rouge: bool = False
    """ROUGE-L of greedy generations (not of a classifier) at the last state and the first."""
    generate_tokens: int = 48
    """Tokens generated per row for ROUGE-L and other metrics of generated text."""
    metrics: list[str] = field(default_factory=list)
    """Measured at every evaluation beside loss, accuracy and perplexity: "exact_match", "token_f1" (SQuAD's),
    "rouge_l", "bleu", "macro_f1", another package's by its name, or "package.module:name": a metric, or a plain
    function (predictions, references) -> float. A site measures for a server what its [policy] lists."""
    best: str | None = None
    """Keep the state with the best number of this name beside the last, and write its model to model-best/ at the end:
    "loss", "accuracy", "token_loss", "perplexity", or a column of one of `metrics`. Left out: "loss" with `[server]
    patience`, else none is kept."""
    prompts: list[str] = field(default_factory=list)
    """Texts behind which the run's model writes at every evaluation, greedily, `generate_tokens` each, to
    generations.jsonl in the run folder. Each stands before the model as it is; with `[data] messages`, it is what the
    user says."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run; see the tables."""

    model: Model = Model()
    data: Data = Data()
    strategy: Strategy = Strategy()
    local: Local = Local()
    codec: Codecs = Codecs()
    privacy: Privacy = field(default_factory=Privacy)
    robust: Robust = field(default_factory=Robust)
    audit: Audit = field(default_factory=Audit)
    server: Server = Server()
    clients: Clients = Clients()
    limits: Limits = Limits()
    eval: Eval = Eval()

    def ranks(self) -> list[int]:
        """LoRA ranks to deal out in order of client name."""
        return [self.clients.rank] if isinstance(self.clients.rank, int) else list(self.clients.rank)

    def in_job(self) -> list[tuple[Registry, Choice]]:
        """What a job of this run names for its clients, by registry; strategies, codecs and metrics are not here."""
        m, local = self.model, self.local
        by_registry: tuple[Sequence[Choice], ...] = [m.adapter], [local.objective], [local.optimizer], local.transforms
        return [(known, c) for known, choices in zip(IN_JOBS, by_registry, strict=True) for c in choices]

    def to_dict(self) -> dict[str, Any]:
        """Plain tables, keys that are off left out; `from_dict` reads it back."""
        tables: dict[str, Any] = _said(asdict(self))
        tables["strategy"] = {"name": self.strategy.name, **self.strategy.options}
        return tables


def _said(value: Any) -> Any:
    """A value of plain tables and lists without the keys that are off."""
    if isinstance(value, dict):
        return {k: _said(v) for k, v in value.items() if v is not None}
    return [_said(v) for v in value] if isinstance(value, list) else value


def budget_of(text: str) -> tuple[str, float]:
    """("bytes", "steps" or "seconds", how many) of a `[server] budget`. Raises ValueError."""
    kind, most = check.named_number(text, BUDGETS)
    if not 0 < most < math.inf:
        raise ValueError(f"budget is {text!r}, wanted bytes=NUMBER, steps=NUMBER or seconds=NUMBER, as in 'bytes=2e7'")
    return kind, most
