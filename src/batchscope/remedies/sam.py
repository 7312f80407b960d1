"""Does a large batch generalise better if it minimises the loss of a neighbourhood? SAM and ASAM, which look uphill.

Sharpness-aware minimisation (Foret et al. 2021) takes the gradient not at the weights w but where a step uphill leads:

    SAM     eps = rho g / |g|_2,           g = grad f(w)
    ASAM    eps = rho T^2 g / |T g|_2,     T = diag(|w| + eta), so that rescaled weights see the same (Kwon et al. 2021)

and steps along grad f(w + eps), from w. A bias has T = 1, as in ASAM's authors' own code, to which their rho belongs:
with T over biases too, they found one four times as large best (github.com/davda54/sam, issue 37). Weight decay and
clipping are the optimiser's, as ever.

f is the mean loss of what one pass sees: with micro-batches or several devices each has an eps of its own, of its part
of the batch (m-sharpness: Foret et al., section 4.1; they find small parts better). Both are part of the trial.

Both passes draw the same random numbers, and running statistics are those of the first alone (`uphill.py`):

    loss = sam_loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), model, (x, y))
    loss.backward()                            # .grad is the gradient at w + eps; the weights are w
    optimizer.step()

There is nothing to save: what a step needs is made in it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.remedies.base import CPU, Case, Remedy, optimizer_of
from batchscope.remedies.uphill import Named, Start, gradient_of, loss_uphill, refuse
from batchscope.task import Batch, Task
from batchscope.training.batches import FixedBatches
from batchscope.training.distributed import LossOf
from batchscope.training.engine import compiled
from batchscope.training.seeding import drawing_from
from batchscope.training.step import evaluation_of, make_model

RHO = 0.05  # Foret et al. 2021, section 3.1: CIFAR and ImageNet
ASAM_RHO, ETA = 0.5, 0.01  # Kwon et al. 2021, section 5: CIFAR-10
TINY = 1e-12  # beside |g|, as in the usual implementation (davda54/sam): a gradient of zeros moves nothing
PROBED = 8  # examples that `why_not` looks at
SAME = 1e-6  # relative; losses of two equal passes differ by no more (a guess: float32's rounding)


def sam_loss(loss_of: LossOf, model: nn.Module, batch: Batch, rho: float = RHO) -> torch.Tensor:
    """The loss at w + eps, a scalar whose backward pass gives every weight its gradient there.

    Both passes are made here; `backward` only hands on what they found, so that hooks on gradients, accumulation and
    bfloat16 autocast go on as usual. (float16 does not: a `GradScaler` comes too late for these gradients.) Without
    gradients (`torch.no_grad`) it is the plain loss.

    Args:
        loss_of: (model, batch) -> mean loss.
        model: all its weights that require a gradient are moved, and count in |g|. For data parallelism let
            DistributedDataParallel wrap a module that calls this function, not the model in it.
        rho: |eps|_2, in the weights' own units.

    Raises CannotAnswer where that cannot be done (`uphill.refuse`), and for sparse gradients.
    """
    return loss_uphill(loss_of, model, batch, lambda w, g: perturbation(w, g, rho))


def asam_loss(loss_of: LossOf, model: nn.Module, batch: Batch, rho: float = ASAM_RHO, eta: float = ETA) -> torch.Tensor:
    """The same with ASAM's eps: |T^-1 eps|_2 = rho, relative to the weights. See `sam_loss`."""
    return loss_uphill(loss_of, model, batch, lambda w, g: perturbation(w, g, rho, eta))


@torch.no_grad()
def perturbation(weights: Named, gradient: Named, rho: float, eta: float | None = None) -> dict[str, torch.Tensor]:
    """eps by the weights' names, for those that have a gradient: SAM's, or with eta ASAM's."""
    scales = {name: weights[name].abs() + eta for name in gradient if not is_bias(name)} if eta is not None else {}
    scaled = {name: g * scales[name] if name in scales else g for name, g in gradient.items()}
    factor = rho / (_norm(list(scaled.values())) + TINY)
    twice = {name: g * scales[name] if name in scales else g for name, g in scaled.items()}
    return {name: g * factor.to(g.device, g.dtype) for name, g in twice.items()}


def is_bias(name: str) -> bool:
    """Whether a weight of that name is a bias: "0.bias", "attention.in_proj_bias", "lstm.bias_ih_l0"."""
    return "bias" in name.rpartition(".")[2]


def _norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """|tensors|_2 over all of them, in float32 at least; nothing waits for the device."""
    wide = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    norms = [torch.linalg.vector_norm(t, dtype=wide).to(tensors[0].device) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(norms))


@dataclass(frozen=True)
class _Uphill(Remedy):
    """What SAM and ASAM share."""

    changes: ClassVar[str] = (
        "Each step follows the gradient taken a step uphill of the weights, where uphill is seen by the part of the "
        "batch that one pass has."
    )
    cost: ClassVar[str] = (
        "Two passes forward and backward in a step, one after the other; memory for two more copies of the weights."
    )
    sets: ClassVar[tuple[str, ...]] = ("gradient",)

    rho: float = RHO

    @abstractmethod
    def loss_at(self, loss_of: LossOf, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss at w + eps."""

    def why_not(self, task: Task, case: Case) -> str | None:
        """A radius that is none; weights in pieces, or that the optimiser leaves out; two passes that differ."""
        if not 0 < self.rho < math.inf:
            default = type(self).rho
            return f"{self.title} expects a radius rho above 0, got {self.rho:g}: leave it at {default:g}"
        if task.shard:
            return f"{self.title} expects whole weights, which it moves, got shard=True: leave it out"
        if task.batch_norm == "synchronised":
            return (
                f"{self.title} expects batch norm over a device's own part of a batch, which it takes a gradient of, "
                'got batch_norm="synchronised": write batch_norm="per replica"'
            )
        return _why_not_twice(task, self.title)

    def apply(self, task: Task, case: Case) -> Task:
        """The task trained on the loss uphill, and evaluated as before."""

        @functools.cache
        def inner() -> LossOf:
            return compiled(task.batch_loss)

        def around_compiled(model: nn.Module, batch: Batch) -> torch.Tensor:
            return self.loss_at(inner(), model, batch)

        untraced = torch.compiler.disable(around_compiled)

        def step(model: nn.Module, batch: Batch) -> torch.Tensor:
            if torch.compiler.is_compiling():  # the two passes are Python's work: what they call is compiled
                return untraced(model, batch)
            return self.loss_at(task.batch_loss, model, batch)

        return dataclasses.replace(task, step=step, evaluate=evaluation_of(task), lr=case.own_learning_rate)


@dataclass(frozen=True)
class Sam(_Uphill):
    """Sharpness-aware minimisation.

    Attributes:
        rho: how far uphill, |eps|_2.
    """

    title: ClassVar[str] = "SAM"
    source: ClassVar[str] = "foret2021"

    rho: float = RHO

    def loss_at(self, loss_of: LossOf, model: nn.Module, batch: Batch) -> torch.Tensor:
        """See `sam_loss`."""
        return sam_loss(loss_of, model, batch, self.rho)


@dataclass(frozen=True)
class Asam(_Uphill):
    """Adaptive SAM, whose neighbourhood scales with the weights.

    Attributes:
        rho: how far uphill, relative to the weights.
        eta: added to |w|, so that weights of 0 move.
    """

    title: ClassVar[str] = "ASAM"
    source: ClassVar[str] = "kwon2021"
    also: ClassVar[tuple[str, ...]] = ("foret2021",)

    rho: float = ASAM_RHO
    eta: float = ETA

    def loss_at(self, loss_of: LossOf, model: nn.Module, batch: Batch) -> torch.Tensor:
        """See `asam_loss`."""
        return asam_loss(loss_of, model, batch, self.rho, self.eta)

    def why_not(self, task: Task, case: Case) -> str | None:
        """As for SAM; and an eta below 0."""
        if not 0 <= self.eta < math.inf:
            return f"{self.title} expects eta of at least 0, got {self.eta:g}: leave it at {ETA:g}"
        return super().why_not(task, case)


def _why_not_twice(task: Task, title: str) -> str | None:
    """One sentence where two passes over a batch are not alike, or find weights that cannot be moved."""
    with drawing_from(0):
        model = make_model(task, CPU)
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        batch = next(iter(FixedBatches(task, task.train, list(range(min(PROBED, task.train_size))), CPU)))
        start = Start(model, CPU)
        loss = task.batch_loss(model, batch)
        try:
            refuse(model, weights)
            gradient = gradient_of(loss, weights)
        except CannotAnswer as error:
            return f"{title}: {error}"
        with start.again():
            again = task.batch_loss(model, batch)
    first, second = float(loss.detach()), float(again.detach())
    if not math.isclose(first, second, rel_tol=SAME) and not (math.isnan(first) and math.isnan(second)):
        what = "a step function" if task.step is not None else "a model and loss"
        return (
            f"{title} expects {what} whose loss is the same twice on one batch with the same random numbers, got "
            f"{first:.6g} and {second:.6g}: draw new data in the data set or in collate_fn, and random numbers from "
            "the global generators"
        )
    updated = {id(p) for group in optimizer_of(task, model).param_groups for p in group["params"]}
    left_out = next((name for name in gradient if id(weights[name]) not in updated), None)
    if left_out is not None:
        return (
            f"{title} expects every weight that requires a gradient in the optimiser, as it moves them all, got none "
            f"of {left_out!r}: set its requires_grad to False"
        )
    return None


REMEDIES = (Sam(), Asam())
