"""How does one step make two passes, the second at other weights, and look like one from outside? For SAM and its like.

    g = grad f(w)            the first pass
    g' = grad f(w + eps)     the second, with eps made of w and g; then the weights are w again, bit for bit

What comes out is a scalar with the second pass's value, whose backward pass gives every weight its g'. Both passes are
over by then, so that hooks at a gradient's accumulation see g' alone, once, and micro-batches and replicas add up as
they always do.

Both passes begin alike: torch's, numpy's and Python's global generators and the model's buffers are for the second what
they were for the first. So dropout has the same masks, and batch norm normalises by the batch's statistics in both.
What the first pass leaves stays, as if it were the only one: running statistics, other buffers, the generators. (What a
layer counts in plain attributes, it counts twice.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from batchscope.errors import CannotAnswer
from batchscope.task import Batch
from batchscope.training.distributed import LossOf
from batchscope.training.seeding import rng_state, set_rng_state

Named = Mapping[str, torch.Tensor]  # weights, or tensors of their shapes, by name


def loss_uphill(
    loss_of: LossOf, model: nn.Module, batch: Batch, eps_of: Callable[[Named, Named], Named]
) -> torch.Tensor:
    """The loss at w + eps. Without gradients (`torch.no_grad`) it is the loss at w.

    Args:
        loss_of: (model, batch) -> mean loss.
        eps_of: (w, g) -> eps; w are all weights that require a gradient, g and eps those that get one.

    Raises CannotAnswer for a model in DistributedDataParallel, hooks that change a weight's gradient, sparse gradients,
    and while a CUDA graph is captured.
    """
    if not torch.is_grad_enabled():
        return loss_of(model, batch)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    refuse(model, weights)
    start = Start(model, next(model.parameters()).device)
    eps = eps_of(weights, gradient_of(loss_of(model, batch), weights))
    with _moved(weights, eps), start.again():
        loss = loss_of(model, batch)
        gradient = gradient_of(loss, weights)
    known = [(weights[name], g) for name, g in gradient.items()]
    return _Known.apply(loss.detach(), len(known), *(p for p, _ in known), *(g for _, g in known))


def gradient_of(loss: torch.Tensor, weights: Named) -> dict[str, torch.Tensor]:
    """The loss's gradient by name, of the weights that it depends on; outside autocast, as a backward pass is."""
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    gradient = {name: g for name, g in zip(weights, found, strict=True) if g is not None}
    sparse = next((name for name, g in gradient.items() if g.layout != torch.strided), None)
    if sparse is not None:
        raise CannotAnswer(f"expected gradients that are not sparse, got one of {sparse!r}: write sparse=False")
    return gradient


def refuse(model: nn.Module, weights: Named) -> None:
    """Raise CannotAnswer where two passes in one step cannot be made, or would not be seen as one."""
    if isinstance(model, DistributedDataParallel):
        raise CannotAnswer(
            "expected a model that DistributedDataParallel does not wrap, as its averaging expects one pass: let it "
            "wrap a module whose forward calls this function"
        )
    hooked = next((name for name, p in weights.items() if getattr(p, "_backward_hooks", None)), None)
    if hooked is not None:
        raise CannotAnswer(
            f"expected weights without register_hook, got one at {hooked!r} that would change its gradient in both "
            "passes and once more: use register_post_accumulate_grad_hook"
        )
    if any(p.is_cuda for p in weights.values()) and torch.cuda.is_current_stream_capturing():
        raise CannotAnswer("expected an eager step: two passes with the same random numbers cannot be captured")


class Start:
    """What a pass begins with beside weights and batch: the generators' states and the buffers' values."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device, self.drawn = device, rng_state(device)
        copies: dict[int, torch.Tensor] = {}
        self.buffers: list[tuple[nn.Module, str, torch.Tensor]] = []
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if id(buffer) not in copies:
                    copies[id(buffer)] = buffer.clone()
                self.buffers.append((module, name, copies[id(buffer)]))

    @contextlib.contextmanager
    def again(self) -> Generator[None]:
        """Inside, a pass begins as the first one did; afterwards the buffers are those that the first one left."""
        left = [getattr(module, name) for module, name, _ in self.buffers]
        set_rng_state(self.drawn, self.device)
        try:
            for module, name, value in self.buffers:
                setattr(module, name, value)
            yield
        finally:
            for (module, name, _), value in zip(self.buffers, left, strict=True):
                setattr(module, name, value)


@contextlib.contextmanager
def _moved(weights: Named, eps: Named) -> Generator[None]:
    """Inside, the weights are w + eps, the tensors the same; afterwards w, bit for bit.

    Autocast keeps the weights that it has cast, and would go on with w: they are dropped.
    """
    before = {name: weights[name].detach().clone() for name in eps}
    try:
        with torch.no_grad():
            for name, e in eps.items():
                weights[name].add_(e)
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                weights[name].copy_(value)
        torch.clear_autocast_cache()


class _Known(torch.autograd.Function):
    """A loss whose gradient is known: (loss, n, n weights, their n gradients) -> the loss."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, number: int, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors[number:])
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        known = [g * outer[0].to(g.device, g.dtype) for g in ctx.saved_tensors]
        return None, None, *known, *(None for _ in known)
