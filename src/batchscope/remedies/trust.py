"""Which weights have a trust ratio, and whose gradient has none? What LARS and LAMB share.

Both make the step of each weight tensor as long as the tensor's own norm says. Biases and the gains and offsets of
normalisation are left out: their norms say nothing (an offset begins at 0), and they are not decayed either (You et al.
2017 and 2019; the practice of their authors' code). They take the step of the plain optimiser underneath.

The optimisers come from the library pytorch-optimizer, an extra of ours; it takes seconds to import, so it is imported
where one is made. Its settings that differ from the papers are named in `lars.py` and `lamb.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from batchscope.errors import CannotAnswer
from batchscope.remedies.base import CPU
from batchscope.task import Task
from batchscope.training.batches import FixedBatches
from batchscope.training.checks import SAMPLE
from batchscope.training.seeding import drawing_from
from batchscope.training.step import make_model

LIBRARY = "pytorch_optimizer"
NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def library() -> Any:
    """The library of optimisers; raises CannotAnswer where it is not installed."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise CannotAnswer(_missing())
    return importlib.import_module(LIBRARY)


def _missing() -> str:
    return (
        "expected the library pytorch-optimizer, which LARS and LAMB come from, and it is not installed: run "
        "pip install 'batchscope[optim]'"
    )


def excluded(model: nn.Module) -> set[nn.Parameter]:
    """Parameters without a trust ratio: vectors and scalars, whatever is called bias, and all of normalisation layers.

    Vectors are biases or gains, however a model calls them.
    """
    found = {p for module in model.modules() if isinstance(module, NORMALISATIONS) for p in module.parameters()}
    return found | {p for name, p in model.named_parameters() if p.dim() < 2 or name.split(".")[-1] == "bias"}


def groups_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[tuple[dict[str, Any], bool]]:
    """Each of the optimiser's groups in two, as params, lr and weight_decay; and whether it is the excluded one.

    The excluded have weight decay 0. A group that would be empty is left out.
    """
    without = excluded(model)
    for group in optimizer.param_groups:
        for out in (False, True):
            params = [p for p in group["params"] if (p in without) == out]
            decay = 0.0 if out else float(group.get("weight_decay", 0.0))
            if params:
                yield {"params": params, "lr": float(group["lr"]), "weight_decay": decay}, out


def why_no_trust(title: str, task: Task) -> str | None:
    """Why neither LARS nor LAMB can train this task, in a sentence; None where both can."""
    if importlib.util.find_spec(LIBRARY) is None:
        return _missing()
    if task.shard:
        return f"{title} expects whole weights, whose norms it takes, got shard=True: leave it out"
    sparse = _sparse_gradient(task)
    if sparse is not None:
        return (
            f"{title} expects dense gradients, got a sparse one for {sparse!r}: make the embedding with sparse=False, "
            "or choose another remedy"
        )
    return None


def _sparse_gradient(task: Task) -> str | None:
    """The name of a weight whose gradient is sparse, on the first examples; None where there is none."""
    with drawing_from(0):
        model = make_model(task, CPU)
        batch = next(iter(FixedBatches(task, task.train, list(range(min(SAMPLE, task.train_size))), CPU)))
        task.batch_loss(model, batch).backward()
    return next((name for name, p in model.named_parameters() if p.grad is not None and p.grad.is_sparse), None)
