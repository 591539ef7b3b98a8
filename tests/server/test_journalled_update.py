"""An update that is read from the journal tensor by tensor is the one that was admitted."""

from pathlib import Path

import pytest
import torch

from fedft import durable
from fedft.arithmetic import tensors
from fedft.recipe import spec_of
from fedft.server.journalled_update import update_in
from fedft.update import Update
from fedft.wire import messages

RUN = "0123456789abcdef"
CODECS = ["fp32", "fp16", "int8", "int4", "ternary:0.5", "topk:0.3 | int8", "fixed:8:1"]
DELTA = {
    "a.lora_A": torch.randn(4, 33, generator=torch.Generator().manual_seed(1)),
    "empty": torch.zeros(0, 3),
    "pairs": torch.tensor([1, 300, 65535], dtype=torch.uint16),
    "seed": torch.tensor([-5, 7], dtype=torch.int32),
    "zeros": torch.zeros(40, 40),  # of a codec of entropy fewer bytes than are sent
}


@pytest.mark.parametrize("codec", CODECS)
def test_each_tensor_is_the_decoder_s_to_the_bit(tmp_path: Path, codec: str) -> None:
    data = messages.encode_update(Update(DELTA, 3, 5, RUN, 2, metrics={"loss": 1.5}), codec, seed=9)
    wanted = messages.decode_update(data, spec_of(DELTA), codec)
    durable.commit(tmp_path / "u", data)
    found = update_in(tmp_path / "u", spec_of(DELTA), codec)
    assert (found.num_examples, found.round, found.run, found.attempt) == (3, 5, RUN, 2)
    assert found.metrics == wanted.metrics
    assert isinstance(found.delta, tensors.Apart)
    assert found.delta.keys() == wanted.delta.keys()
    assert all(tensors.same_bits(found.delta[n], x) for n, x in wanted.delta.items())
