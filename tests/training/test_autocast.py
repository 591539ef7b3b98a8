"""bfloat16 in forward passes over float32 adapters: near the float32 step, less kept, updates in float32."""

import torch
from small_models import factors, small

from fedft import run_file
from fedft.adapters.lora import LoRA
from fedft.models.handle import ModelHandle
from fedft.simulations import run as runs


def handle_on(*, autocast: bool) -> tuple[ModelHandle, dict[str, torch.Tensor]]:
    s = small("llama")
    handle = ModelHandle(s.model, s.layout, LoRA(), autocast=autocast)
    handle.write(factors(s.layout, 4))
    return handle, s.batch


def kept_bytes(handle: ModelHandle, batch: dict[str, torch.Tensor]) -> tuple[int, torch.Tensor]:
    """(bytes that a forward pass keeps for its gradients, loss)."""
    total, own = 0, {p.data_ptr() for p in handle.model.parameters()}

    def count(x: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += 0 if x.data_ptr() in own else x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        loss = handle.loss(batch)
    return total, loss


def test_a_step_is_near_that_of_float32_and_keeps_less() -> None:
    wide, batch = handle_on(autocast=False)
    narrow, _ = handle_on(autocast=True)
    more, loss = kept_bytes(wide, batch)
    less, near = kept_bytes(narrow, batch)
    assert less < more
    assert 0 < abs(float((loss - near).detach())) < 0.02 * float(loss.detach())
    loss.backward()
    near.backward()
    for n, p in wide.parameters().items():
        other = narrow.parameters()[n].grad
        assert other.dtype == torch.float32
        assert float((other - p.grad).norm()) < 0.1 * float(p.grad.norm()), n


def test_a_run_ends_near_the_one_without_alone_and_together(tiny_base, tmp_path) -> None:
    sets = [f"model.id='{tiny_base}'", "data.clients=2", "local.steps=2", "server.rounds=2", "server.loggers=[]"]
    sets += ["strategy.name=fedit", "eval.max_rows=4"]
    losses = []
    for k, more in enumerate(([], ["local.autocast=true"], ["local.autocast=true", "server.together=2"])):
        config = run_file.load(runs.QUICKSTART, [*sets, *more])
        losses.append(runs.simulate(config, out=tmp_path / str(k)).summary["final"]["loss"])
    assert losses[0] not in losses[1:]
    assert max(losses) < 1.01 * min(losses)
