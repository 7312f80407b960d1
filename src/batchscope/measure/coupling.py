"""Does one example's gradient exist at all? Not where the model or the loss mixes the examples of a batch.

Batch norm in training mode does: an example's output depends on the others through the batch's mean and variance. A
part of the batch is then not what it would be alone; results are flagged. A contrastive loss does more: it compares
examples with each other, and a smaller batch has another loss. Results are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from batchscope.errors import TaskError
from batchscope.task import Batch, Task
from batchscope.training.batch_norm import refuse_torchs_own
from batchscope.training.batches import examples_in, mapped, split, units_in
from batchscope.training.seeding import drawing_from, torch_drawing_from

MOST_NODES = 20_000  # of a graph that are looked at
SEPARATE = 1e-2  # of the loss: rounding is far below, a comparison of twice as many examples far above (a guess)
# in torch's names: x @ y and b + x @ y, and what a layer's own product is called
PRODUCTS = {"MmBackward0": ("self", "mat2"), "AddmmBackward0": ("mat1", "mat2")}
LAYERS = {*PRODUCTS, "BmmBackward0", "LinearBackward0", "ConvolutionBackward0", "EmbeddingBackward0"}
EINSUM = 3  # dimensions: torch.einsum makes a batch of 1 of a product of two matrices


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the layers that normalise by the batch's own statistics."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    named = [(n, mod) for n, mod in model.named_modules() if isinstance(mod, kinds)]
    return [n or type(mod).__name__ for n, mod in named if mod.training or mod.running_mean is None]


def replica_norms(task: Task) -> list[str]:
    """Those of a task's model that see a replica's part of a batch on several devices; synchronised ones see it all.

    Raises CannotAnswer for torch's own synchronised layers in a task that does not ask for them.
    """
    if task.batch_norm != "per replica":
        return []
    with drawing_from(0):
        model = task.model().train()
    refuse_torchs_own(task.name, model)
    return batch_norms(model)


def compares_examples(loss: torch.Tensor, m: int) -> bool:
    """Whether a loss was made from a matrix of all pairs of its m examples (or of c views of each, c m by c m).

    Looks for a product of two matrices that layers computed, weights not among them, whose result has as many rows as
    columns, a multiple of m. Losses that compare pairs in another way (distances, broadcasting) are not found.
    """
    for node in _above(loss.grad_fn):
        following = [n for n, _ in node.next_functions]
        if node.name() in PRODUCTS:
            left, right = (_sizes(node, name) for name in PRODUCTS[node.name()])
            shape, factors = [*left[:1], *right[-1:]], following[-2:]
        elif following and following[0] is not None and following[0].name() == "BmmBackward0":
            shape, factors = _sizes(node, "self"), [n for n, _ in following[0].next_functions]
            shape = shape[1:] if len(shape) == EINSUM and shape[0] == 1 else []
        else:
            continue
        if m > 1 and len(shape) == 2 and shape[0] == shape[1] and shape[0] % m == 0 and all(map(_computed, factors)):
            return True
    return False


def _above(node: Any) -> Iterator[Any]:
    """The nodes of a graph, from its result upwards, each once."""
    waiting, seen = [node], set()
    while waiting and len(seen) < MOST_NODES:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def _sizes(node: Any, name: str) -> list[int]:
    """Of a tensor that went in; readable after the backward pass too."""
    return list(getattr(node, f"_saved_{name}_sym_sizes", ()))


def _computed(node: Any) -> bool:
    """Whether a factor comes from data through a layer: not a constant, nor made of parameters alone (W + B A, say).

    Data need no gradient, so that a layer they go into has an input that no node made. An embedding's is its indices.
    """
    layers = [above for above in _above(node) if above.name() in LAYERS]
    return any(n.name() == "EmbeddingBackward0" or any(f is None for f, _ in _factors(n)) for n in layers)


def _factors(node: Any) -> Any:
    """What a product multiplies: not the bias that it adds (none is an input that no node made, too)."""
    if node.name() == "ConvolutionBackward0":
        return node.next_functions[:2]
    return node.next_functions[-2:] if node.name() in PRODUCTS else node.next_functions[:2]


@torch.no_grad()
def separable(task: Task, model: nn.Module, batch: Batch) -> bool:
    """Whether the batch's loss is the mean of its halves' losses, weighted by their units; in eval mode.

    True where that cannot be tried: a batch of one, or one that cannot be cut.
    """
    m = examples_in(batch)
    if m < 2:
        return True
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    with torch_drawing_from(0, device):
        model.eval()
        try:
            copy = mapped(batch, torch.clone)
            parts = split(mapped(batch, torch.clone), (m + 1) // 2)
            units = [units_in(task, part) for part in parts]
            losses = [float(task.batch_loss(model, part)) if n else 0.0 for part, n in zip(parts, units, strict=True)]
            whole = float(task.batch_loss(model, copy))
        except (TaskError, RuntimeError):
            return True
        finally:
            for module, training in modes:
                module.training = training
    mean = sum(n * loss for n, loss in zip(units, losses, strict=True)) / max(1, sum(units))
    return not math.isfinite(whole) or abs(mean - whole) <= SEPARATE * max(abs(whole), 1e-6)
