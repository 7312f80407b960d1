"""How does batch norm see a whole batch of which every replica has a part? With sums over all replicas.

    mean = sum_r sum_i x_ri / n,    variance = sum_r sum_i (x_ri - mean)^2 / n,    n = sum_r n_r values of a channel

The backward pass of a sum over the replicas is the sum of its gradients over them, so that outputs, gradients and
running statistics are those of one device with the whole (micro-)batch, whatever the sizes of the parts. A replica that
has no examples in a pass still takes part in every sum, with nothing: its model runs on a stand-in whose loss weighs 0
(`in_step.py`), and its layers add no values of it. They normalise it by itself, so that it stays finite however deep
the model, and pass no gradient back through it: 0 times what has overflowed is not 0, and would reach every replica.

On CUDA the sums are those of torch's own `SyncBatchNorm`, which refuses tensors on the CPU; there they are made here.
Layers change their class and nothing else: names, weights and statistics stay. Outside a step (an evaluation, a count
of operations) they work on what they are given, and no replica waits for another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchscope.errors import CannotAnswer

TORCHS_OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Synchronised(_BatchNorm):
    """Batch norm whose statistics are those of all replicas, inside `meeting`; elsewhere it is torch's."""

    meets, absent = False, False
    process_group: dist.ProcessGroup | None = None  # of the replicas; None: all ranks

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same shape; an absent replica's values are normalised by themselves, and count nowhere."""
        if not (self.meets and self.training):
            return _BatchNorm.forward(self, input)
        if not self.absent:
            return self.over_all(input)
        nothing = self.over_all(input[:0].to(_wide(input)))  # torch's gathers float32, of bfloat16 inputs too
        idle = [0 * p.sum() for p in (self.weight, self.bias) if p is not None]
        return _Aside.apply(input, self.by_itself(input.detach())) + sum(idle, nothing.sum()).to(input.dtype)

    @torch.no_grad()
    def by_itself(self, input: torch.Tensor) -> torch.Tensor:
        """The values as they would be on one device; running statistics stay."""
        x, (over, shape) = input.to(_wide(input)), _axes(input)
        centred = x - x.mean(over).view(shape)
        y = centred * torch.rsqrt(centred.square().mean(over) + self.eps).view(shape)
        return self.rescaled(y, shape).to(input.dtype)

    def rescaled(self, y: torch.Tensor, shape: list[int]) -> torch.Tensor:
        """Normalised values with the layer's weight and bias."""
        if self.weight is not None:
            y = y * self.weight.view(shape)
        return y + self.bias.view(shape) if self.bias is not None else y

    def over_all(self, input: torch.Tensor) -> torch.Tensor:
        """The normalised values of this replica's part, which may be empty."""
        raise NotImplementedError("a subclass says how the statistics of all replicas are had on its device")

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of at least 2 dimensions, got {input.dim()}")


class OnCuda(Synchronised, nn.SyncBatchNorm):
    """With torch's own kernels and gathers."""

    def over_all(self, input: torch.Tensor) -> torch.Tensor:
        """See the base."""
        return nn.SyncBatchNorm.forward(self, input)


class OnCpu(Synchronised):
    """Two sums forward and two backward; in float32 at least."""

    def over_all(self, input: torch.Tensor) -> torch.Tensor:
        """See the base. Raises ValueError for a single value per channel, as torch does."""
        self._check_input_dim(input)
        x, (over, shape) = input.to(_wide(input)), _axes(input)
        count = x.new_full((1,), x[:, :1].numel())
        sums = _Summed.apply(torch.cat([x.sum(over), count]), self.process_group)
        n = sums[-1].detach()
        if n < 2:
            raise ValueError("expected more than 1 value per channel when training, got 1 over all replicas")
        mean = sums[:-1] / n
        centred = x - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(over), self.process_group) / n
        self._remember(mean.detach(), variance.detach() * n / (n - 1))
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        return self.rescaled(y, shape).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Running statistics: averaged with weight `momentum`, or evenly over all passes where that is None."""
        if not self.track_running_stats or self.running_mean is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        if self.running_var is not None:
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Summed(torch.autograd.Function):
    """The sum over the replicas; backward that of its gradients, as each replica's loss depends on all their values."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.group, total = group, values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _Summed.apply(gradients[0].contiguous(), ctx.group), None


class _Aside(torch.autograd.Function):
    """Other values in the place of a layer's input, which gets a gradient of zeros whatever comes back."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return torch.zeros_like(gradients[0]), None


def _axes(input: torch.Tensor) -> tuple[list[int], list[int]]:
    """What a channel's statistics are taken over, and the shape in which they meet the values."""
    return [d for d in range(input.dim()) if d != 1], [1, -1, *[1] * (input.dim() - 2)]


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The same model, whose batch norm layers can meet those of the other replicas.

    Raises CannotAnswer for layers of another make, whose own forward pass would be lost.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if type(layer) not in TORCHS_OWN:
            raise CannotAnswer(
                f"expected batch norm layers of torch's own kinds to synchronise, got {type(layer).__name__} at "
                f'{name or "the top"!r}: use nn.BatchNorm1d, 2d or 3d, or leave batch_norm="per replica"'
            )
        layer.__class__ = OnCuda if device.type == "cuda" else OnCpu
    return model


def refuse_torchs_own(task: str, model: nn.Module) -> None:
    """Raise CannotAnswer for a model that synchronises by itself, in passes that nobody keeps in step.

    Replicas would wait for each other for ever where they make unequal numbers of passes.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.SyncBatchNorm) and layer.training:
            raise CannotAnswer(
                f'task {task!r}: expected no nn.SyncBatchNorm on several devices with batch_norm="per replica", got '
                f'one at {name or "the top"!r}: use batch_norm="synchronised", or nn.BatchNorm1d, 2d or 3d'
            )


def norms_of(model: nn.Module) -> list[Synchronised]:
    """The layers that `synchronised` made."""
    return [layer for layer in model.modules() if isinstance(layer, Synchronised)]


@contextlib.contextmanager
def meeting(norms: Sequence[Synchronised], group: dist.ProcessGroup | None, absent: bool) -> Generator[None]:
    """Inside, the statistics are those of all replicas, each of which passes here; `absent`: this one adds nothing."""
    for layer in norms:
        layer.meets, layer.absent, layer.process_group = True, absent, group
    try:
        yield
    finally:
        for layer in norms:
            layer.meets, layer.absent, layer.process_group = False, False, None
