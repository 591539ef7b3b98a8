"""Of a conversation the turns of the assistant are learned with their ends, and nothing else; BOS and EOS are there as
the template has them."""

import json
from datetime import datetime
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from transformers import AutoTokenizer

import fedft
from fedft import run_file
from fedft.data import chat, client_datasets, conversations
from fedft.data import examples as data
from fedft.data.examples import IGNORED
from fedft.data.row_counts import RowCounts
from fedft.errors import ConfigError, DataError
from fedft.simulations import finished_run

ASKED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}" + ASKED
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}" + ASKED
)
INST = (
    "{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + system if loop.first else '' }}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HEADERS = (
    "{{ bos_token }}{% if tools %}{{ '<|h|>tools<|/h|>' + (tools | tojson) + eos_token }}{% endif %}"
    "{% for m in messages %}{{ '<|h|>' + m['role'] + '<|/h|>\n\n' + m['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, "{}<|im_end|>"),
    "marked": (MARKED, "{}<|im_end|>"),
    "inst": (INST, " {} </s>"),
    "headers": (HEADERS, "{}</s>"),
}
SHORT = [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "Four."}]
LONG = [
    {"role": "system", "content": "You are brief."},
    *SHORT,
    {"role": "user", "content": "And three more?"},
    {"role": "assistant", "content": "\nSeven: \n\n4 + 3 = 7"},
]
every_template = pytest.mark.parametrize("name", TEMPLATES)


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    """Bytes and their pairs; adds BOS by itself, which no template may have twice."""
    found = AutoTokenizer.from_pretrained(tiny_base)
    found.add_special_tokens(
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|h|>", "<|/h|>"],
        }
    )
    from tokenizers.processors import TemplateProcessing

    bos = ("<s>", found.bos_token_id)
    found.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    assert found("a")["input_ids"][0] == found.bos_token_id
    return found


def encode(tokenizer, said, template, *, max_length=400, field="messages", **more):
    row = {field: said, **more}
    return chat.encode(
        row, field=field, template=template, tokenizer=tokenizer, max_length=max_length, where="train.jsonl, row 7"
    )


def learned(tokenizer, example) -> list[str]:
    """What is learned, stretch by stretch."""
    runs = [(on, [label for _, label in run]) for on, run in groupby(enumerate(example.labels), lambda p: p[1] >= 0)]
    return [tokenizer.decode(run) for on, run in runs if on]


# --- what is learned


@every_template
@pytest.mark.parametrize("said", [SHORT, LONG], ids=["single", "multi"])
def test_what_is_learned_are_the_assistant_s_turns_with_their_ends(tokenizer, name, said):
    template, form = TEMPLATES[name]
    example = encode(tokenizer, said, template)
    strip = str.strip if name == "headers" else str
    assert learned(tokenizer, example) == [form.format(strip(m["content"])) for m in said if m["role"] == "assistant"]
    assert all(label in (i, IGNORED) for i, label in zip(example.input_ids, example.labels, strict=True))
    whole = tokenizer.apply_chat_template(said, chat_template=template, tokenize=False)
    assert tokenizer.decode(example.input_ids) == whole.rstrip("\n")
    assert example.lost == example.prompt_lost == 0


@every_template
def test_bos_is_there_as_often_as_in_the_template(tokenizer, name):
    ids = encode(tokenizer, LONG, TEMPLATES[name][0]).input_ids
    assert ids.count(tokenizer.bos_token_id) == (name in ("inst", "headers"))
    assert ids.count(tokenizer.eos_token_id) == {"inst": 2, "headers": 5}.get(name, 0)


@every_template
def test_what_is_before_a_turn_is_what_a_server_is_given(tokenizer, name):
    """The last learned turn begins behind exactly the tokens of the conversation so far, asked to go on."""
    example = encode(tokenizer, LONG, TEMPLATES[name][0])
    asked = tokenizer.apply_chat_template(LONG[:-1], chat_template=TEMPLATES[name][0], add_generation_prompt=True)
    if name != "marked":  # there a token that lies across the border is learned, as the library's own mask has it
        assert example.input_ids[: example.prompt_length] == asked["input_ids"]
    assert example.labels[example.prompt_length - 1] == IGNORED != example.labels[example.prompt_length]


@every_template
def test_sharegpt_is_another_spelling_of_the_same(tokenizer, name):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    said = [{"from": names[m["role"]], "value": m["content"]} for m in LONG]
    template = TEMPLATES[name][0]
    assert encode(tokenizer, said, template, field="conversations") == encode(tokenizer, LONG, template)


def test_a_turn_that_writes_no_end_token_ends_as_the_template_ends_it(tokenizer):
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert learned(tokenizer, encode(tokenizer, SHORT, plain)) == ["Four.\n"]


def test_a_conversation_may_begin_with_the_assistant_and_end_with_the_user(tokenizer):
    said = [SHORT[1], *LONG[1:4]]
    example = encode(tokenizer, said, CHATML)
    assert learned(tokenizer, example) == ["Four.<|im_end|>"] * 2
    assert example == encode(tokenizer, said[:-1], CHATML)  # what follows changes no loss
    with pytest.raises(DataError, match=r"row 7: the chat template fails: TemplateError: roles must alternate"):
        encode(tokenizer, said, INST)


def test_tools_are_given_to_the_template(tokenizer):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    calling = HEADERS.replace("m['content'] | trim", "(m['content'] or m['tool_calls'] | tojson)")
    said = [SHORT[0], call, {"role": "tool", "content": "4"}, SHORT[1]]
    example = encode(tokenizer, said, calling, tools=tools)
    assert '"name": "add", "parameters": {}' in tokenizer.decode(example.input_ids)
    assert learned(tokenizer, example) == [json.dumps(call["tool_calls"]) + "</s>", "Four.</s>"]
    assert encode(tokenizer, said, calling, tools=json.dumps(tools)) == example
    assert encode(tokenizer, said, calling, tools=[]) == encode(tokenizer, said, calling, tools=None)
    with pytest.raises(DataError, match=r"row 7: field 'tools' is \['add'\], wanted a list of objects"):
        encode(tokenizer, said, calling, tools=["add"])


@pytest.mark.parametrize("name", ["chatml", "headers"])
def test_a_system_prompt_may_have_a_field_of_its_own_and_a_list_may_be_its_json(tokenizer, name):
    template = TEMPLATES[name][0]
    wanted = encode(tokenizer, LONG, template)
    assert encode(tokenizer, LONG[1:], template, system=LONG[0]["content"]) == wanted
    assert encode(tokenizer, LONG, template, system="another one, which has no say") == wanted
    assert encode(tokenizer, json.dumps(LONG), template, system=None) == wanted


# --- what is left out


@pytest.mark.parametrize("name", ["chatml", "marked"])
def test_of_an_empty_turn_nothing_is_learned_not_even_to_stop(tokenizer, name):
    empty, silent = {"role": "assistant", "content": " "}, {**SHORT[1], "weight": 0}
    for without in (empty, silent):
        example = encode(tokenizer, [SHORT[0], without, *SHORT], TEMPLATES[name][0])
        assert learned(tokenizer, example) == ["Four.<|im_end|>"]
        assert not encode(tokenizer, [SHORT[0], without], TEMPLATES[name][0]).learnable


def test_rows_whose_assistant_says_nothing_are_skipped_and_counted(tokenizer):
    rows = [{"m": SHORT}, {"m": [SHORT[0], {"role": "assistant", "content": None}]}]

    def one(row, where):
        return chat.encode(row, field="m", template=CHATML, tokenizer=tokenizer, max_length=99, where=where)

    assert len(data.encode_all(rows, one, "rows", counts := RowCounts())) == 1
    assert (counts.rows, counts.empty, counts.cut) == (2, 1, 0)


@every_template
def test_a_long_conversation_is_cut_from_the_right_and_counted(tokenizer, name):
    whole = encode(tokenizer, LONG, TEMPLATES[name][0])
    for length in range(1, len(whole.input_ids) + 1):
        example = encode(tokenizer, LONG, TEMPLATES[name][0], max_length=length)
        assert (example.input_ids, example.labels) == (whole.input_ids[:length], whole.labels[:length])
        assert example.lost == sum(x != IGNORED for x in whole.labels[length:])
        assert example.lost + example.prompt_lost == len(whole.labels) - length
        assert example.prompt_length <= length


# --- mistakes


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (SHORT[:1], "'messages' has no turn of the assistant among its 1; nothing is learned"),
        ("hello", "field 'messages' is 'hello', wanted a list of messages"),
        (["hello"], "message 1 is 'hello', wanted {role, content} or {from, value}"),
        ([{"content": "x"}], "message 1 has no 'role'; there are content"),
        ([{"role": "assitant", "content": "x"}], "role is 'assitant', wanted one of .*; did you mean 'assistant'"),
        ([{"role": ["user"], "content": "x"}], r"role is \['user'\], wanted one of"),
        ([{"from": "gtp", "value": "x"}], "from is 'gtp', wanted one of .*human, gpt; did you mean 'gpt'"),
        ([*SHORT, {"role": "user", "text": "x"}], "message 3 has no 'content'; there are role, text"),
        ([*SHORT, {"role": "user", "content": [{"type": "image"}]}], r"message 3: content is \[.*, wanted text"),
        ([*SHORT, {"role": "user", "content": 7}], "message 3: content is 7, wanted text"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_row(tokenizer, said, line):
    with pytest.raises(DataError, match=f"train.jsonl, row 7: .*{line}") as e:
        encode(tokenizer, said, CHATML)
    assert "\n" not in str(e.value)


junk = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(max_size=9) | some.sampled_from(["user", "assistant"]),
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(some.sampled_from(["role", "content", "from", "value", "tool_calls", "weight"]), inner)
    ),
    max_leaves=12,
)


@given(said=junk | some.lists(junk, min_size=1, max_size=4), tools=junk, name=some.sampled_from(list(TEMPLATES)))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_record_holds_it_is_an_example_or_refused(tokenizer, said, tools, name):
    try:
        example, line = encode(tokenizer, said, TEMPLATES[name][0], tools=tools), ""
    except DataError as e:
        example, line = data.Example([], [], 0), str(e)
    assert "\n" not in line
    assert len(example.labels) == len(example.input_ids)


def test_a_field_that_is_not_there_suggests_the_nearest():
    with pytest.raises(DataError, match="row 1: no field 'mesages'; there are id, messages; did you mean 'messages'"):
        conversations.messages({"id": 1, "messages": SHORT}, "mesages", "row 1")


def test_a_template_that_is_not_stable_or_has_marks_elsewhere_is_refused_in_one_line(tokenizer):
    last = CHATML.replace("{% endfor %}", "{% if loop.last and m.role == 'assistant' %}</s>{% endif %}{% endfor %}")
    assert learned(tokenizer, encode(tokenizer, SHORT, last)) == ["Four.<|im_end|>\n</s>"]
    with pytest.raises(DataError, match=r"row 7: message 3: the chat template writes a turn of the assistant differ"):
        encode(tokenizer, LONG, last)
    once = MARKED.replace("== 'assistant'", "== 'assistant' and loop.last")
    with pytest.raises(DataError, match=r"row 7: the \{% generation %\} marks .* cover 1 stretches, .* has 2 turns"):
        encode(tokenizer, LONG, once)


@every_template
def test_a_template_whose_turns_have_no_end_is_told_from_one_whose_turns_do(tokenizer, name):
    template = TEMPLATES[name][0]
    assert chat.ends(template, tokenizer)
    outside = "{% endgeneration %}<|im_end|>"
    cut = template.replace(" + '<|im_end|>' }}{% endgeneration %}", " }}" + outside).replace("<|im_end|>\n", "\n")
    cut = cut.replace(" + eos_token }}", " }}")
    assert cut != template
    assert not chat.ends(cut, tokenizer)
    assert chat.ends("{{ raise_exception('no') }}", tokenizer)


def test_without_a_template_the_line_to_write_is_said(tokenizer):
    with pytest.raises(ConfigError, match=r"tokenizer has no chat template; a line chat_template = 'chat.jinja'"):
        encode(tokenizer, SHORT, None)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"prompt": "{q}"}, r"\[data\] prompt = '{q}' has no effect beside messages"),
        ({"max_prompt": 9}, r"\[data\] max_prompt = 9 has no effect beside messages"),
        ({"messages": ""}, r"\[data\] messages is '', wanted the name of a field"),
        ({"messages": None, "chat_template": CHATML}, r"\[data\] chat_template has no effect without messages"),
        ({"chat_template": "chta.jinja"}, r"\[data\] chat_template = 'chta.jinja': no such file, nor a Jinja text"),
    ],
)
def test_keys_that_make_no_sense_together_are_refused(keys, line):
    said = {"messages": "messages"} | keys
    with pytest.raises(ConfigError, match=line):
        run_file.from_dict({"data": {k: v for k, v in said.items() if v is not None}})


def test_a_template_in_a_file_becomes_the_run_s_own_text(tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    (tmp_path / "run.toml").write_text('[data]\nmessages = "m"\nchat_template = "chat.jinja"\n')
    assert run_file.load(tmp_path / "run.toml").data.chat_template == CHATML


# --- dates


DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + '.\n' }}"


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["prefixes", "marks"])
def test_two_days_give_the_same_tokens_which_is_said(tokenizer, monkeypatch, template):
    from transformers.utils import chat_template_utils

    found = {}
    for day in (1, 2):

        class Now(datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return datetime(2031, 1, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Now)
        chat_template_utils._compile_jinja_template.cache_clear()
        at_serving = tokenizer.apply_chat_template(SHORT, chat_template=DATED + template, tokenize=False)
        assert at_serving.startswith(f"Today is 0{day} Jan 2031.")  # or this test shows nothing
        found[day] = encode(tokenizer, SHORT, DATED + template)
    assert found[1] == found[2]
    assert tokenizer.decode(found[1].input_ids).startswith("Today is 26 Jul 2024.")
    assert learned(tokenizer, found[1]) == ["Four.<|im_end|>"]


def test_a_template_as_llama_writes_dates_has_the_fixed_one_too(tokenizer):
    date = (
        "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = "
        'strftime_now("%d %b %Y") %}{% else %}{% set date_string = "26 Jul 1024" %}{% endif %}{% endif %}'
    )
    example = encode(tokenizer, SHORT, date + "{{ date_string + '\n' }}" + CHATML)
    assert tokenizer.decode(example.input_ids).startswith("26 Jul 2024\n<|im_start|>user")
    with pytest.raises(ConfigError, match="other than by strftime_now"):
        encode(tokenizer, SHORT, "{% set f = '%d' %}{{ strftime_now(f) }}" + CHATML)


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("objective", ["likelihood", "dpo"])
def test_a_fixed_date_is_said_once(tokenizer, dated, objective):
    data = {"train": "f", "chat_template": (DATED if dated else "") + CHATML, "max_length": 99}
    data |= {"messages": "m"} if objective == "likelihood" else {}
    base = SimpleNamespace(tokenizer=tokenizer, ids=9999, source="base")
    other = [*SHORT[:-1], {"role": "assistant", "content": "no"}]
    parts = {c: ([{"m": SHORT, "chosen": SHORT, "rejected": other}] * 2, []) for c in "xy"}
    config = run_file.from_dict({"data": data, "local": {"objective": objective}})
    client_datasets.encode(parts, config, base, counts := RowCounts())
    said = [line for line in counts.lines(99, 2) if "date" in line]
    wanted = "the chat template writes the day's date; it is 26 Jul 2024 in all rows, on every site and day"
    assert said == ([wanted] if dated else [])


# --- through a round

END = "<|end|>"  # of the built-in base, which has no other special token to write


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_hundred_rows_of_each_form_go_through_a_round(tmp_path: Path, tiny_base, form, name):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    with (tmp_path / "rows.jsonl").open("w") as file:
        for n in range(100):
            asked = [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]
            said = [{"role": "system", "content": "Add."}, *asked, *(asked if n % 2 else [])]
            if form == "conversations":
                said = [{"from": names[m["role"]], "value": m["content"]} for m in said]
            file.write(json.dumps({"client": "ab"[n % 2], form: said}) + "\n")
    template = TEMPLATES[name][0].replace("eos_token", f"'{END}'").replace("bos_token", f"'{END}'")
    config = run_file.from_dict(
        {
            "model": {"id": str(tiny_base)},
            "data": {
                "train": str(tmp_path / "rows.jsonl"),
                "messages": form,
                "chat_template": template.replace("<|im_end|>", END),
                "max_length": 200,
            },
            "local": {"steps": 4, "batch_size": 4},
            "server": {"rounds": 1},
            "clients": {"rank": 2},
            "eval": {"max_rows": 8},
        }
    )
    run = fedft.simulate(config, out=tmp_path / "run")
    assert run.summary["rows"]["rows"] == 100
    assert run.summary["rows"]["cut"] == run.summary["rows"]["empty"] == 0
    assert run.summary["final"]["loss"] < run.summary["initial"]["loss"]
    finished_run.export_run(tmp_path / "run", tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == config.data.chat_template
