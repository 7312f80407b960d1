"""How long is the step of each layer? LARS: a share of the layer's own norm (You et al. 2017).

For a weight tensor w with gradient g, weight decay b, momentum m and trust coefficient c, a step at learning rate lr is

    local = c |w| / (|g| + b |w|),    v <- m v + local (g + b w),    w <- w - lr v,

so that no layer moves further than c lr |w| before momentum, however large its gradient. Biases and normalisation:
local = 1, b = 0 (`trust.py`). The paper keeps lr within v; here it is outside, as in all of torch, and the two differ
only while lr changes. Clipping the gradient's norm would change g, and hardly the step: such tasks are refused.

The rate is of another kind than SGD's: tuning begins at TIMES_SGD times the baseline's, and k times that, as theirs
does. Their warm-up: "linear scaling + LARS".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from batchscope.remedies.base import CPU, Case, Remedy, optimizer_of
from batchscope.remedies.scaling import linear
from batchscope.remedies.trust import excluded, groups_of, library, why_no_trust
from batchscope.task import Task
from batchscope.training.seeding import drawing_from
from batchscope.training.step import make_model

TRUST = 0.001  # c: You et al. 2017, and the library's default
MOMENTUM = 0.9  # theirs; where the task's own optimiser has none
TIMES_SGD = (
    10.0  # a guess; on digits the best rates were 16 times SGD's at 32 examples, 4 to 16 times at 256 (one seed)
)
RATE = 1.0  # at the own batch size, of a task that does not train with SGD now (a guess)


def lars(model: torch.nn.Module, own: torch.optim.Optimizer, trust: float = TRUST) -> torch.optim.Optimizer:
    """LARS over the parameters of another optimiser of this model, with its learning rates and weight decay.

    Its momentum too, where it has one. State is in its `state_dict`. Raises CannotAnswer without the library.
    """
    momentum = float(own.defaults.get("momentum", 0.0)) or MOMENTUM
    groups = [group for group, _ in groups_of(own, model)]
    return library().LARS(groups, lr=groups[0]["lr"], momentum=momentum, trust_coefficient=trust)


@dataclass(frozen=True)
class Lars(Remedy):
    """LARS in the place of the task's optimiser.

    Attributes:
        trust: the trust coefficient c.
    """

    title: ClassVar[str] = "LARS"
    source: ClassVar[str] = "you2017"
    changes: ClassVar[str] = "SGD's step of each layer is made as long as a share of the layer's norm."
    cost: ClassVar[str] = "One number of state per weight, and two norms per layer and step."
    sets: ClassVar[tuple[str, ...]] = ("optimiser",)

    trust: float = TRUST

    def why_not(self, task: Task, case: Case) -> str | None:
        """No library, sharded weights, sparse gradients, clipping, or normalisation with matrices for gains."""
        if not self.trust > 0:
            return f"{self.title} expects a trust coefficient above 0, got {self.trust:g}: leave it at {TRUST:g}"
        if task.clip_norm is not None:
            return (
                f"{self.title} expects no clip_norm, as its steps hardly depend on the gradient's norm, got "
                f"{task.clip_norm:g}: leave clip_norm out, or choose another remedy"
            )
        with drawing_from(0):
            wide = [tuple(p.shape) for p in excluded(make_model(task, CPU)) if p.dim() > 1]
        if wide:
            return (
                f"{self.title} expects biases and normalisation of one dimension, which the library tells them by, got "
                f"the shape {wide[0]}: use LAMB, or flatten it"
            )
        return why_no_trust(self.title, task)

    def apply(self, task: Task, case: Case) -> Task:
        """The task with LARS, at a rate that grows with the batch size."""
        from_sgd = isinstance(optimizer_of(task), torch.optim.SGD)
        own = TIMES_SGD * case.own_learning_rate if from_sgd else RATE
        return dataclasses.replace(
            task,
            optimizer=lambda model, lr: lars(model, task.optimizer(model, lr), self.trust),
            lr=linear(own, case.times),
        )


REMEDIES = (Lars(),)
