"""Server and sites have one tokenizer: its digest is in the job, and says whatever changes the ids of a text."""

import json
from dataclasses import replace

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizer

from fedft import run_file
from fedft.errors import PlanRefused
from fedft.models.tokenizer_digest import digest_of
from fedft.server.job import job_of
from fedft.simulations import workplace


@pytest.fixture
def altered(tiny_base, tmp_path):
    """The digest of the tiny tokenizer after its files have been changed by a function of tokenizer.json's content."""

    def digest(change=lambda content: None, **config):
        AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path)
        for name, edit in (("tokenizer.json", change), ("tokenizer_config.json", lambda c: c.update(config))):
            content = json.loads((tmp_path / name).read_text())
            edit(content)
            (tmp_path / name).write_text(json.dumps(content))
        return digest_of(AutoTokenizer.from_pretrained(tmp_path))

    return digest


def swap_two(content):
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


def test_saving_and_use_do_not_change_the_digest(tiny_base, altered):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    found = digest_of(tokenizer)
    assert len(found) == 64
    tokenizer(["a b", "c"], truncation=True, max_length=2, padding=True)
    assert digest_of(tokenizer) == found == altered()


@pytest.mark.parametrize(
    "change",
    [
        swap_two,
        lambda c: c["model"]["merges"].pop(),
        lambda c: c.update(normalizer={"type": "Lowercase"}),
        lambda c: c.update(post_processor={"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}),
    ],
    ids=["vocabulary", "merges", "normaliser", "post-processor"],
)
def test_whatever_changes_ids_changes_the_digest(altered, change):
    found = altered()
    assert altered(change) != found


def test_so_do_a_chat_template_and_a_special_token(altered):
    plain = altered()
    assert len({plain, altered(chat_template="{{ messages }}"), altered(unk_token="<other>")}) == 3


def test_merges_are_pairs_in_whatever_form_they_are_written(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    class Older:
        special_tokens_map, chat_template = tokenizer.special_tokens_map, tokenizer.chat_template

        class backend_tokenizer:
            @staticmethod
            def to_str():
                content = json.loads(tokenizer.backend_tokenizer.to_str())
                content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
                return json.dumps(content)

    assert digest_of(Older()) == digest_of(tokenizer)


def test_a_tokenizer_in_python_has_one_too():
    class Words(PreTrainedTokenizer):
        def __init__(self, words, **kwargs):
            self.words = words
            super().__init__(**kwargs)

        @property
        def vocab_size(self):
            return len(self.words)

        def get_vocab(self):
            return {w: i for i, w in enumerate(self.words)}

        def _convert_token_to_id(self, token):
            return self.words.index(token) if token in self.words else 0

        def _convert_id_to_token(self, index):
            return self.words[index]

        def _tokenize(self, text):
            return text.split()

    assert digest_of(Words(["a", "b"])) == digest_of(Words(["a", "b"])) != digest_of(Words(["b", "a"]))


def test_a_site_with_another_tokenizer_refuses_the_job(tiny_base, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"client": "x", "prompt": "a{i}", "response": "b{i}"}}\n' for i in range(5)))
    tables = {"model": {"id": str(tiny_base)}, "data": {"train": str(rows), "max_length": 16}}
    place = workplace.workplace(run_file.from_dict({**tables, "strategy": {"name": "fedit"}}))
    job = job_of(place.config, place.base.digest, [], place.base.tokenizer_digest)
    assert job.tokenizer == digest_of(place.base.tokenizer)
    assert job.run == job_of(place.config, place.base.digest, []).run
    client = place.clients["x"]
    client.join(job)
    client.join(replace(job, tokenizer=""))  # of a server that does not say
    with pytest.raises(PlanRefused, match=r"tokenizer .*the server's ffffffffffff: another vocabulary") as e:
        client.join(replace(job, tokenizer="f" * 64))
    assert e.value.code == "tokenizer_mismatch"
