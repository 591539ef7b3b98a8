"""The mean of sparse vectors against the mean of the dense ones."""

import pytest
import torch

from fedft.aggregation.sparse_mean import sparse_mean
from fedft.compression import sparse_vector
from fedft.update import Update


@pytest.mark.parametrize("uniform", [False, True])
def test_it_is_the_weighted_mean_of_the_dense_vectors(uniform):
    rng = torch.Generator().manual_seed(1)
    vectors = [torch.randn(40, generator=rng) for _ in range(3)]
    masks = [sparse_vector.largest(x.abs(), 0.3) for x in vectors]
    counts = (3, 1, 20)
    updates = [Update(sparse_vector.packed(x, m), n) for x, m, n in zip(vectors, masks, counts, strict=True)]
    weights = [1 / 3] * 3 if uniform else [n / 24 for n in counts]
    wanted = sum(w * x.masked_fill(~m, 0).double() for w, x, m in zip(weights, vectors, masks, strict=True))
    mean = sparse_mean(iter(updates), uniform)["mean"]
    assert mean.shape == (64,)  # whole words
    assert torch.allclose(mean[:40].double(), wanted, atol=1e-6)
    assert not mean[40:].any()
    with pytest.raises(ValueError, match="none"):
        sparse_mean(iter([]), uniform)
