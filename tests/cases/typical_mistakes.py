"""What people get wrong in their first hours, over every command: as it is typed, and what the one line has to say.

They are typed in the folder that `place_of_mistakes.prepare` makes. `test_typical_mistakes.py` asks of each a code that
is not 0, no traceback, and one line on stderr.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """One mistake."""

    command: str
    """What is typed behind `fedft`, as a shell reads it."""
    said: tuple[str, ...]
    """Parts of the line: what was found, what was wanted, where to look."""
    code: int = 2


def m(command: str, *said: str, code: int = 2) -> Mistake:
    """A mistake; SIM and SET stand for what many have in common."""
    return Mistake(command.replace("SIM", "simulate run.toml --out new").replace("SET", "--set"), said, code)


COMMAND_LINE = [
    m("nonsense", "No such command 'nonsense'", "--help"),
    m("simulat run.toml", "'simulat'", "Did you mean 'simulate'?"),
    m("keys servr", "'servr'", "Did you mean 'server'?", "keys --help"),
    m("keys", "no command given", "keys --help"),
    m("SIM --epochs 3", "No such option '--epochs'", "simulate --help"),
    m("SIM extra", "unexpected extra argument (extra)"),
    m("simulate run.toml --out", "'--out' requires an argument"),
    m("export done", "Missing option '--to'", "export --help"),
    m("codecs --jsn", "'--jsn'", "--json"),
    m("SIM SET local.steps", "'local.steps'", "wanted table.key=value"),
    m("SIM SET steps=3", "'steps=3'", "wanted table.key=value"),
    m("SIM SET local.steps.x=3", "'steps' is not a table"),
]
RUN_FILES = [
    m("simulate missing.toml", "missing.toml: no such run file", "runs the quickstart"),
    m("simulate base", "base: cannot be read: is a folder", "wanted a TOML file"),
    m("simulate rows.jsonl", "rows.jsonl: not valid TOML", "line 1"),
    m("simulate twice.toml", "twice.toml: not valid TOML", "'local'", "twice", "line 13"),
    m("simulate key-twice.toml", "key-twice.toml: not valid TOML", "overwrite", "line 10"),
    m("simulate unquoted.toml", "unquoted.toml: not valid TOML", "line 2"),
    m("simulate backslash.toml", "backslash.toml: not valid TOML", "Unescaped", "line 2"),
    m("simulate utf16.toml", "utf16.toml: cannot be read: not UTF-8 text"),
    m("simulate value.toml", "value.toml: model is a value", "wanted a table [model]"),
    m("SIM SET locl.steps=1", "run.toml: no table [locl]", "did you mean 'local'?"),
    m("SIM SET trainer.steps=1", "no table [trainer]", "a run file has model, data, strategy, local"),
    m("SIM SET local.stpes=1", "[local] has no 'stpes'", "did you mean 'steps'?"),
    m("SIM SET local.rounds=1", "[local] has no 'rounds'", "of [server]"),
    m("SIM SET local.num_train_epochs=3", "[local] has no 'num_train_epochs'", "wanted [local] epochs"),
    m(
        "SIM SET local.gradient_accumulation_steps=4",
        "'gradient_accumulation_steps'",
        "wanted [local] micro_batch, and a batch_size",
    ),
    m("SIM SET model.load_in_4bit=true", "[model] has no 'load_in_4bit'", "wanted [model] base_bits"),
    m("SIM SET model.target_modules=q_proj", "[model] has no 'target_modules'", "wanted [model] targets"),
    m("SIM SET model.r=8", "[model] has no 'r'", "wanted [clients] rank"),
    m("SIM SET local.steps=many", "[local] steps is 'many'", "wanted int"),
    m("SIM SET local.steps=0", "expected [local] steps >= 1, got 0"),
    m("""SIM SET 'local.learning_rate="1e-3"'""", "[local] learning_rate is '1e-3'", "wanted float"),
    m("SIM SET server.seed=-1", "[server] seed", "got -1"),
    m("SIM SET clients.rank=0", "expected [clients] rank >= 1, got 0"),
    m("SIM SET clients.rank=[]", "[clients] rank", "an empty list"),
    m("SIM SET clients.rank=[2,4]", "[clients] rank: fedit needs one rank", "[2, 4]"),
    m("SIM SET data.holdout=20", "0 <= [data] holdout <= 1, got 20.0"),
    m("SIM SET model.dtype=int4", "[model] dtype is 'int4'", "wanted one of auto, bfloat16"),
    m("SIM SET model.task=classification", "[model] task is 'classification'", "'sequence-classification'"),
    m("SIM SET server.budget=1GB", "budget is '1GB'", "bytes=2e7"),
    m("SIM SET privacy.mode=dp", "[privacy] mode is 'dp'", "wanted 'none' or 'central-dp'"),
]
NAMES = [
    m("SIM SET strategy.name=fedavgg", "[strategy] name: no strategy 'fedavgg'", "package.module:name", "'fedavg'?"),
    m("SIM SET strategy.name=mine:median", "cannot load mine:median", "No module named 'mine'"),
    m("SIM SET strategy.name=fedft.strategies.fedit:fedt", "it has no 'fedt'", "did you mean 'fedit'?"),
    m("simulate outside.toml --out new", "'os:system' is code outside fedft", "--allow os:system"),
    m("SIM SET strategy.mu=0.1", "[strategy] fedit has no option 'mu'", "it has padding"),
    m("SIM SET strategy.name=fedprox SET strategy.mu=-1", "fedprox: expected mu >= 0, got -1.0"),
    m("SIM SET strategy.name=ferret SET strategy.table=3", "ferret: table is 3", "cannot be written in a run file"),
    m("SIM SET strategy.name=scaffold SET strategy.on=mezo", "scaffold cannot be on mezo", "corrects gradients"),
    m("SIM SET codec.up=zstd", "[codec] up: codec is 'zstd'", "wanted one of bf16"),
    m("SIM SET codec.up=int4 SET strategy.name=flora", "[codec] up = 'int4': flora sends whole factors", "wanted fp32"),
    m(
        "SIM SET local.optimizer=adamv",
        "[local] optimizer: no optimizer 'adamv'",
        "there are adafactor",
        "did you mean",
    ),
    m(
        "SIM SET 'eval.metrics=[\"blue\"]'",
        "[eval] metrics: no metric 'blue'",
        "there are bleu, exact_match, macro_f1, rouge_l",
    ),
    m(
        "SIM SET 'server.loggers=[\"neptune\"]'",
        "[server] loggers: no logger 'neptune'",
        "there are mlflow, otel, tens",
    ),
    m("SIM SET clients.plan=mine", "[clients] plan: no planner 'mine'", "package.module:name"),
]
MODELS = [
    m("SIM SET model.id=./none", "[model] id: no folder './none'", "wanted a model folder or a hub id"),
    m("SIM SET model.id=owner/name", "cannot load 'owner/name'", "no such folder", "HF_HUB_OFFLINE is set"),
    m("SIM SET 'model.id=$NOWHERE/llama'", "[model] id", "the variable NOWHERE is not set"),
    m("SIM SET 'model.id=\"\"'", "[model] id: no folder ''", "wanted a model folder"),
    m("SIM SET model.id=model.gguf", "model.gguf' is a file", "wanted the folder of a model", "config.json"),
    m("SIM SET model.id=pytorch_model.bin", "pytorch_model.bin' is a file", "*.safetensors"),
    m("SIM SET model.id=adapter.pt", "adapter.pt' is a file", "a tokenizer"),
    m("SIM SET model.id=no-tokenizer", "the tokenizer of", "no-tokenizer", "sentencepiece or tiktoken"),
    m("SIM SET model.id=lora", "no folder '/gone/base'", "lora' is an adapter of it"),
    m("SIM SET model.id=empty", "cannot load", "empty' for causal-lm", "model_type"),
    m("SIM SET model.id=lfs", "model.safetensors is a pointer of Git LFS", "git lfs pull"),
    m("SIM SET model.id=half", "cannot load", "half' for causal-lm", "deserializing header"),
    m("SIM SET model.device=cuda:99", "[model] device: cannot use 'cuda:99'", "here"),
    m("SIM SET model.device=gpu", "[model] device: cannot use 'gpu'", "cpu"),
    m("SIM SET 'model.targets=[\"q_prj\"]'", "[model] targets: no layer ends in 'q_prj'", "q_proj"),
    m("SIM SET model.targets=[]", "[model] targets is []", "'all-linear'"),
    m("SIM SET 'model.targets=\"re:(\"'", "[model] targets: '(' is no regular expression"),
    m("SIM SET data.max_length=100000", "[data] max_length = 100000", "has 256 positions"),
]
DATA = [
    m("SIM SET data.train=none.jsonl", "none.jsonl: no such file", "beside the run file"),
    m("SIM SET data.train=empty.jsonl", "empty.jsonl holds no records"),
    m("SIM SET data.train=empty", "empty: a folder without a file .jsonl"),
    m("SIM SET data.train=broken.jsonl", "broken.jsonl, line 25: not JSON"),
    m("SIM SET data.train=semicolons.csv", "semicolons.csv, line 1", "separated by ';'", "wanted ','"),
    m("SIM SET data.train=latin.csv", "latin.csv, line 2: byte 0xe9 is not UTF-8, probably windows-1252"),
    m("SIM SET data.train=rows.txt", "rows.txt: expected", ".jsonl", "hub id"),
    m("SIM SET data.train=owner/name", "owner/name: no such file", "HF_HUB_OFFLINE is set"),
    m("SIM SET data.client=hospital", "row 1 has no 'hospital'", "there are client, prompt, response"),
    m("SIM SET 'data.prompt={question}'", "rows.jsonl", "no field 'question'", "there are client, prompt"),
    m("SIM SET data.prompt=Question:", "[data] prompt = 'Question:' names no field", "'{answer}'"),
    m("SIM SET 'data.prompt={{prompt}}'", "[data] prompt", "in single braces", "'{prompt}'"),
    m("SIM SET data.test=elsewhere.jsonl", "elsewhere.jsonl: none of its 12 rows belongs to a client", "'north'"),
    m("SIM SET data.clients=9", "[data] clients = 9", "rows of 2 clients only"),
    m("SIM SET data.partition=iid", "partition 'iid' needs [data] clients"),
    m("SIM SET data.min_rows=1000", "[data] min_rows = 1000", "12 rows"),
    m("SIM SET data.messages=messages", "no chat template", "chat_template = 'chat.jinja'"),
    m("simulate classes.toml --out new", "[model] labels", "at least two"),
    m('simulate classes.toml --out new SET \'model.labels=["a", "b"]\'', "client 'north', row 1", "not a label"),
]
RUN_FOLDERS = [
    m("simulate run.toml --out done", "--out done: holds a run already", "--resume continues it"),
    m("simulate run.toml --out base", "--out base: is not empty and holds no run"),
    m("simulate run.toml --out rows.jsonl", "--out rows.jsonl: cannot be written"),
    m("simulate run.toml --out none --resume", "--resume none: there is no run to resume"),
    m("simulate run.toml --out done --resume SET local.steps=2", "--resume done", "local.steps", "start a new run"),
    m("eval base", "base: not a run folder", "no config.toml"),
    m("eval no-state", "no-state: the run has no state yet"),
    m("eval damaged", "damaged/state: no generation verifies", code=65),
    m("eval done --metric blue", "no metric 'blue'", "exact_match"),
    m("eval done --compeft --rouge", "--compeft", "leave --rouge"),
    m("export done --to base", "--to base: is not empty"),
    m("export done --to elsewhere --client east", "--client east: all clients of fedit have one model"),
    m("export done --to elsewhere --rank 0", "--rank 0: wanted 1 to "),
    m("export done --to elsewhere --rank 2 --merged", "--rank 2: a merged model has no rank"),
    m("export done --push elsewhere", "--push elsewhere: wanted OWNER/NAME"),
    m("status none", "none: no such folder", "wanted the folder of a run"),
    m("status empty", "empty: holds no run (no config.toml) and no race"),
    m("board rows.jsonl", "rows.jsonl: no such folder", "wanted the folder of a run"),
    m("board done --listen 80", "--listen '80'", "wanted HOST:PORT"),
    m("board done --listen 203.0.113.7:80", "--listen 203.0.113.7:80: cannot listen there", "Cannot assign"),
    m("report none", "none: holds neither a run (config.toml) nor a race (race.json)"),
    m("report done --to base", "--to base: cannot be written: Is a directory"),
    m("race run.toml --strategies fedit,florra --out r", "no strategy 'florra'", "did you mean 'flora'?"),
    m("race run.toml --strategies fedit,mine:typo --out r", "cannot load mine:typo", "No module named 'mine'"),
    m("race run.toml --strategies fedit,fedit --out r", "contender 'fedit' is there twice", "another label"),
    m("race run.toml --strategies fedit --budget 5GB --out r", "budget is '5GB'", "bytes=NUMBER"),
    m("race run.toml --strategies fedit --seeds 0 --out r", "'--seeds': 0", "x>=1"),
    m("race run.toml --strategies fedit --out rows.jsonl", "--out rows.jsonl: cannot be written"),
    m("bench nothing", "bench is 'nothing'", "wanted one of aggregate"),
    m("bench codec --out base", "base", "cannot be written"),
    m("check startegy fedavg", "kind is 'startegy'", "did you mean 'strategy'?"),
    m("check codec zstd", "codec is 'zstd'", "wanted one of bf16"),
    m("check strategy fedprox SET nu=1", "fedprox has no option 'nu'", "it has mu"),
    m("check strategy fedprox SET mu", "--set 'mu'", "wanted option=value"),
]
DEPLOYMENTS = [
    m("keys server keys", "no key is overwritten", "`fedft keys renew`"),
    m("keys server k2 --host 'not a host'", "--host 'not a host'", "wanted a DNS name"),
    m("keys server k2 --days 0", "1 <= days <= 3650, got 0"),
    m("keys site k3 a/b", "without slashes", "'a/b'"),
    m("keys list none", "none/roster.toml: no such file", "`fedft keys server` makes one"),
    m("keys enrol keys none.card.toml", "none.card.toml: no such file", "`fedft keys site`"),
    m("keys enrol keys run.toml", "run.toml: no table 'model' here", "wanted [[site]]"),
    m("keys revoke keys nort", "keys/roster.toml: no site 'nort'", "did you mean 'north'?"),
    m("split run.toml --to base", "--to base: is not empty"),
    m("split run.toml --to sites --server nohost", "--server 'nohost'", "wanted HOST:PORT"),
    m("split run.toml --to sites --keys none", "--keys none: there is no ca.pem"),
    m("server run.toml --keys none --out d", "none/roster.toml: no such file", "`fedft keys server`"),
    m("server run.toml --keys nobody --out d", "nobody/roster.toml: no site is enrolled", "`fedft keys enrol`"),
    m("server run.toml --keys keys --out d --board 80", "--board '80'", "wanted HOST:PORT"),
    m("server run.toml --keys keys --out d --listen 80", "--listen '80'", "wanted HOST:PORT"),
    m("server run.toml --keys keys --out d --superlink nohost", "--superlink 'nohost'", "wanted HOST:PORT"),
    m("server run.toml --keys keys --out base", "--out base: is not empty and holds no run"),
    m("server run.toml --keys expired --out d", "expired/server.pem: expired at", "fedft keys renew expired"),
    m("server run.toml --keys foreign --out d", "foreign/server.pem", "ca.pem"),
    m("server run.toml --keys open --out d", "open/signing.key: mode 0644", "chmod 600", code=77),
    m("server run.toml --keys garbled --out d", "garbled/signing.key: not an unencrypted private key", code=77),
    m("client none.toml", "none.toml: no such site file"),
    m("client run.toml", "run.toml: no table [strategy]", "a site file has site, server"),
    m("client no-name.toml", "no-name.toml: [site] needs 'name'"),
    m("client no-keys.toml", "[keys] folder = 'none'", "wanted a folder"),
    m("client no-port.toml", "[server] address is 'localhost'", "wanted host:port"),
    m("client no-ca.toml", "[server] ca = 'none.pem'", "wanted a file"),
    m("client wrong-ca.toml", "wrong.pem", "the server's ca.pem"),
    m("client no-rows.toml", "[data] train = 'none.jsonl'", "there is none at"),
    m("client typo.toml", "[policy] has no 'max_rnk'", "did you mean 'max_rank'?"),
    m("client strategy.toml", "[policy] strategies: no strategy 'fedits'", "did you mean 'fedit'?"),
]
MISTAKES = [*COMMAND_LINE, *RUN_FILES, *NAMES, *MODELS, *DATA, *RUN_FOLDERS, *DEPLOYMENTS]
