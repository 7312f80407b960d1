"""How do Adam's own constants change with the batch size? Two rules, which disagree on more than they share.

Malladi et al. 2022: the batch is k times as large, and noise dominates the gradient. Then Adam follows the same
stochastic differential equation, a step counting k times as long, at

    lr' = sqrt(k) lr,    1 - beta' = k (1 - beta) for both betas,    eps' = eps / sqrt(k).

It ends where k (1 - beta) reaches 1: at beta1 = 0.9 below k = 10.

Marek et al. 2025: the second moment forgets half after as many examples as before, and nothing else changes:

    beta2' = beta2^k,    as    half-life = B ln 2 / ln(1 / beta2) examples.

To first order in 1 - beta2 that is Malladi's beta2'. The learning rate begins where it was: they found that it grows
far less than sqrt(k).

Weight decay stays as it is in both (`weight_decay.py` rescales it). A schedule that moves the betas (OneCycleLR does)
overrides the first one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from batchscope.remedies.base import Case, Remedy, optimizer_of
from batchscope.remedies.scaling import square_root
from batchscope.task import Task

SMALLEST_BETA = 1e-9  # a scaled beta below it is 0 but for rounding


def scaled_beta(beta: float, times: float) -> float:
    """1 - k (1 - beta), k = `times`; not above 0 where the rule has come to its end."""
    return 1 - times * (1 - beta)


def held_beta(beta: float, times: float) -> float:
    """beta^k: the same half-life in examples at a batch `times` as large."""
    return beta**times


def half_life(beta: float, batch_size: int) -> float:
    """Examples after which an average with this decay per step has forgotten half; inf for beta = 1."""
    return batch_size * math.log(2) / -math.log(beta) if beta < 1 else math.inf


def scale_constants(optimizer: torch.optim.Optimizer, times: float) -> None:
    """Malladi's betas and epsilon, in place, for a batch `times` as large; call it once. The learning rates stay.

    They are in the optimiser's parameter groups, and thus in its state_dict. Raises ValueError where the rule has come
    to its end, KeyError for an optimiser without betas.
    """
    for group in _groups(optimizer):
        betas = tuple(scaled_beta(beta, times) for beta in group["betas"])
        if min(betas) < SMALLEST_BETA:
            raise ValueError(f"expected {times:g} (1 - beta) below 1, got betas {group['betas']}: take a smaller batch")
        group["betas"], group["eps"] = betas, group["eps"] / math.sqrt(times)


def hold_half_life(optimizer: torch.optim.Optimizer, times: float) -> None:
    """Marek's beta2, in place, for a batch `times` as large; call it once.

    It is in the optimiser's parameter groups, and thus in its state_dict. Raises KeyError for one without betas.
    """
    for group in _groups(optimizer):
        group["betas"] = (group["betas"][0], held_beta(group["betas"][1], times))


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The parameter groups, and the defaults that further ones would take."""
    return [*optimizer.param_groups, optimizer.defaults]


@dataclass(frozen=True)
class AdamScaled(Remedy):
    """Malladi et al. 2022: learning rate, betas and epsilon."""

    title: ClassVar[str] = "Adam scaled"
    source: ClassVar[str] = "malladi2022"
    changes: ClassVar[str] = (
        "Adam's learning rate grows with the square root of the batch size, 1 - beta with the batch size itself."
    )
    cost: ClassVar[str] = "Nothing."
    sets: ClassVar[tuple[str, ...]] = ("learning rate", "optimiser")

    def why_not(self, task: Task, case: Case) -> str | None:
        """Another optimiser than Adam or AdamW, or a batch beyond the rule's end."""
        optimizer = optimizer_of(task)
        if (reason := _not_adam(self.title, optimizer)) is not None:
            return reason
        lowest = min(float(beta) for group in optimizer.param_groups for beta in group["betas"])
        if scaled_beta(lowest, case.times) >= SMALLEST_BETA:
            return None
        return (
            f"{self.title} expects k (1 - beta) below 1, got {case.times * (1 - lowest):.3g} with beta {lowest:g} at a "
            f"batch k = {case.times:g} times as large: below {case.own_batch_size / (1 - lowest):g} examples it applies"
        )

    def apply(self, task: Task, case: Case) -> Task:
        """The task with its Adam scaled, at sqrt(k) times the baseline's learning rate."""
        made = _changed(task, lambda optimizer: scale_constants(optimizer, case.times))
        return dataclasses.replace(made, lr=square_root(case.own_learning_rate, case.times))


@dataclass(frozen=True)
class HalfLifeInExamples(Remedy):
    """Marek et al. 2025: beta2 alone. A rule for the learning rate may be put beside it."""

    title: ClassVar[str] = "second-moment half-life in examples"
    source: ClassVar[str] = "marek2025"
    changes: ClassVar[str] = "Adam's second moment forgets half after as many examples as at the small batch size."
    cost: ClassVar[str] = "Nothing."
    sets: ClassVar[tuple[str, ...]] = ("optimiser",)
    counts: ClassVar[bool] = True

    def why_not(self, task: Task, case: Case) -> str | None:
        """Another optimiser than Adam or AdamW."""
        return _not_adam(self.title, optimizer_of(task))

    def apply(self, task: Task, case: Case) -> Task:
        """The task with beta2 changed, at the baseline's learning rate."""
        made = _changed(task, lambda optimizer: hold_half_life(optimizer, case.times))
        return dataclasses.replace(made, lr=case.own_learning_rate)


def _not_adam(title: str, optimizer: torch.optim.Optimizer) -> str | None:
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return None
    return f"{title} expects torch's Adam or AdamW, whose constants it changes, got {type(optimizer).__name__}"


def _changed(task: Task, change: Callable[[torch.optim.Optimizer], None]) -> Task:
    """The task, every one of whose optimisers is changed once it is made."""

    def optimizer(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        made = task.optimizer(model, lr)
        change(made)
        return made

    return dataclasses.replace(task, optimizer=optimizer)


REMEDIES = (AdamScaled(), HalfLifeInExamples())
