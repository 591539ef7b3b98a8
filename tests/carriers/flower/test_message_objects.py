"""Flower messages as objects: what goes in comes out, and no tree costs more than the bytes allowed."""

import json
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity

from fedft.carriers.flower import grid, message_objects
from fedft.errors import RejectedUpdate

PAYLOAD = bytes(range(256)) * 50_000  # three chunks


class Store:
    """The SuperLink's objects."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.tree: Any = None
        self.pulled = 0

    def register(self, announced: Any, tree: Any) -> tuple[list[str], str]:
        self.tree = tree
        return [
            o.object_id for o in message_objects.iterate_object_tree(tree) if o.object_id not in self.objects
        ], "session"

    def PushObject(self, request: Any) -> Any:
        assert sha256(request.object_content).hexdigest() == request.object_id
        assert request.object_id not in self.objects, "sent twice"
        self.objects[request.object_id] = request.object_content
        return SimpleNamespace(stored=True)

    def PullObject(self, request: Any) -> Any:
        content = self.objects.get(request.object_id)
        self.pulled += len(content or b"")
        return SimpleNamespace(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )


def sent(payload: bytes, store: Store | None = None) -> Store:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    store = store or Store()
    message_objects.send(grid.pack("train", payload, 7, "1"), store.register, store, 1)
    return store


def fetched(store: Store, max_bytes: int) -> Any:
    return grid.unpack(message_objects.fetch(store.tree, 1, store, 1, max_bytes), max_bytes)


@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD, bytes(len(PAYLOAD))], ids=["empty", "one", "many", "zeros"])
def test_what_goes_in_comes_out(payload):
    assert fetched(sent(payload), len(payload)) == payload


def test_the_root_is_the_last_object_sent():
    store = sent(PAYLOAD)
    assert list(store.objects)[-1] == store.tree.object_id


def test_equal_payloads_are_sent_once():
    store = sent(PAYLOAD)
    before = sum(map(len, store.objects.values()))
    sent(PAYLOAD, store)
    assert sum(map(len, store.objects.values())) - before < 1000


def test_a_message_on_its_way_is_pending_and_one_withdrawn_is_said_to_be():
    store = sent(PAYLOAD)
    root = store.objects.pop(store.tree.object_id)
    with pytest.raises(message_objects.Withdrawn):
        fetched(store, len(PAYLOAD))
    store.objects[store.tree.object_id] = b""
    with pytest.raises(message_objects.Pending):
        fetched(store, len(PAYLOAD))
    store.objects[store.tree.object_id] = root
    store.objects[next(iter(store.objects))] = b""  # a root without its first chunk
    with pytest.raises(RejectedUpdate, match="without one of its objects"):
        fetched(store, len(PAYLOAD))


def test_a_message_that_is_too_large_is_not_fetched_to_the_end():
    store = sent(PAYLOAD * 3)
    with pytest.raises(RejectedUpdate) as refusal:
        fetched(store, 2**20)
    assert refusal.value.code == "too_large"
    assert store.pulled < 2**20 + 4 * 5 * 2**20


def test_a_chunk_named_often_is_not_joined_often():
    """A megabyte of names would make terabytes of array."""
    store = sent(PAYLOAD)
    name, array = next((n, c) for n, c in store.objects.items() if c.startswith(b"Array "))
    head, _, body = array.partition(b"\0")
    bomb = json.dumps(json.loads(body) | {"arraychunk_ids": [0] * 100_000}).encode()
    store.objects[name] = b" ".join([*head.split(b" ")[:-1], str(len(bomb)).encode()]) + b"\0" + bomb
    with pytest.raises(RejectedUpdate) as refusal:
        fetched(store, 4 * len(PAYLOAD))
    assert refusal.value.code == "too_large"


def test_a_tree_of_many_objects_is_not_walked():
    store = sent(b"x")
    store.tree.children.extend(ObjectTree(object_id=f"{i:064x}") for i in range(1000))
    with pytest.raises(RejectedUpdate) as refusal:
        fetched(store, 2**20)
    assert refusal.value.code == "too_large"
    assert store.pulled == 0


@pytest.mark.parametrize("kind", ["Message ", "RecordDict ", "ArrayRecord ", "Array ", "ArrayChunk "])
@pytest.mark.parametrize(
    "broken",
    [
        b"nothing",
        b"\0",
        b"A\0B",
        b"Array  3\0{}",
        b"Message  0\0",
        b"ArrayChunk  0\0",
        b"Array  2\0[]",
        b"\xff \xff 1\0x",
    ],
)
def test_whatever_the_bytes_of_an_object_the_message_is_refused(kind, broken):
    store = sent(b"payload")
    name = next(n for n, c in store.objects.items() if c.startswith(kind.encode()))
    store.objects[name] = broken
    assert outcome(store) in ({"malformed", b""} if kind == "ArrayChunk " else {"malformed"})


def outcome(store: Store) -> Any:
    try:
        return fetched(store, 2**20)
    except RejectedUpdate as e:
        return e.code


def test_other_objects_than_a_message_are_refused():
    store = sent(b"payload")
    store.tree = store.tree.children[0]
    with pytest.raises(RejectedUpdate, match="expected a message"):
        fetched(store, 2**20)
