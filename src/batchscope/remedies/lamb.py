"""How long is the step of each layer under Adam? LAMB: as long as the layer's own norm says (You et al. 2019, alg. 2).

For a weight tensor w with weight decay b, and Adam's moments m and v of its gradient, corrected for their start, a step
at learning rate lr is

    r = m / (sqrt(v) + eps),    w <- w - lr phi(|w|) / |r + b w| (r + b w),    phi(z) = min(z, 10),

so that lr is the step's length relative to the layer's. Biases and normalisation take Adam's step lr r (`trust.py`).

What the library's LAMB needs to be this one:
    weight_decouple=False   the decay is inside the ratio; by default it is applied before, outside it
    adam_debias=True        by default lr is divided by 1 - beta1^t *after* the ratio, ten times the step at first
    betas, step by step     it does not correct v, nor m where the ratio is 1. A corrected average is itself one,
                            m_t = b_t m_(t-1) + (1 - b_t) g_t with b_t = beta (1 - beta^(t-1)) / (1 - beta^t), b_1 = 0:
                            a hook sets b_t before a step and puts beta back after it
    max_grad_norm           clips nothing unless pre_norm is set; a task's clip_norm clips as ever
It adds eps to |r + b w|, which changes nothing but where a step is about as short as eps.

The rate is of another kind than SGD's and Adam's, and cannot follow from theirs: tuning begins at RATE at a batch of AT
examples, and at others goes with the square root, their rule. Their warm-up: "square-root scaling + LAMB".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from batchscope.remedies.base import Case, Remedy
from batchscope.remedies.scaling import square_root
from batchscope.remedies.trust import groups_of, library, why_no_trust
from batchscope.task import Task

BETAS, EPS = (0.9, 0.999), 1e-6  # You et al. 2019; where the task's own optimiser has none
RATE, AT = 0.03, 512  # a guess; on digits the best rates were 0.005 to 0.02 at 32 examples, 0.06 at 256 (one seed)


def lamb(model: torch.nn.Module, own: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """LAMB over the parameters of another optimiser of this model, with its learning rates and weight decay.

    Its betas too, where it has them. State is in its `state_dict`, as always. Raises CannotAnswer without the library.
    """
    groups = [group | {"adam": out} for group, out in groups_of(own, model)]
    made = library().Lamb(
        groups,
        lr=groups[0]["lr"],
        betas=tuple(own.defaults.get("betas", BETAS)),
        eps=EPS,
        weight_decouple=False,
        adam_debias=True,
    )
    _correct_moments(made)
    return made


def corrected(beta: float, step: int) -> float:
    """b_t of step t (from 1): the decay with which an average is one that is corrected for its start."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


def _correct_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser see corrected betas during its steps; between them they are as given."""
    kept: list[Any] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        kept[:] = [group["betas"] for group in optimizer.param_groups]
        for group, betas in zip(optimizer.param_groups, kept, strict=True):
            group["betas"] = tuple(corrected(beta, group.get("step", 0) + 1) for beta in betas)

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, betas in zip(optimizer.param_groups, kept, strict=True):
            group["betas"] = betas

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


@dataclass(frozen=True)
class Lamb(Remedy):
    """LAMB in the place of the task's optimiser."""

    title: ClassVar[str] = "LAMB"
    source: ClassVar[str] = "you2019"
    changes: ClassVar[str] = "Adam's step of each layer is made as long as the learning rate times the layer's norm."
    cost: ClassVar[str] = "Two numbers of state per weight, as Adam, and two norms per layer and step."
    sets: ClassVar[tuple[str, ...]] = ("optimiser",)

    def why_not(self, task: Task, case: Case) -> str | None:
        """No library, sharded weights or sparse gradients."""
        return why_no_trust(self.title, task)

    def apply(self, task: Task, case: Case) -> Task:
        """The task with LAMB, at a rate that depends on the batch size alone."""
        return dataclasses.replace(
            task,
            optimizer=lambda model, lr: lamb(model, task.optimizer(model, lr)),
            lr=square_root(RATE, case.batch_size / AT),
        )


REMEDIES = (Lamb(),)
