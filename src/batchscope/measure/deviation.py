"""How far is a batch's gradient from the full one? |g_B - G|^2 at fixed weights, for B from 1 to the whole data set.

In expectation over batches drawn without replacement that is tr(Sigma) / B  (N - B) / (N - 1), and 0 at B = N.

One pass over the training set in `GROUPS` equal groups gives G, and batches of one group, two, four, ... as means of
neighbouring groups, which are random since the order is. Smaller batches are drawn afresh, `DRAWS` of each size. So a
checkpoint takes little more than an epoch. Weights, gradients, running statistics and generators stay as they were.
"""

from __future__ import annotations

import itertools

import torch

from batchscope.records import Deviations
from batchscope.task import Batch, Task
from batchscope.training.batches import Source, examples_in, make_source, mapped, split, units_in
from batchscope.training.seeding import torch_drawing_from

GROUPS = 64  # the largest batch compared is half the data set: two draws
DRAWS = 16  # of each size below a group (a guess at what an interval needs)
KEPT_BYTES = 1 << 29  # of groups' gradients held at once; a large model gets fewer groups, and a gap below the smallest
EPOCH = 1_000_000  # the first epoch number of the orders drawn here: training does not get there
DRAWING_SEED = 0  # of what the model draws at random (dropout) meanwhile


def cost_of(train_size: int) -> int:
    """Examples that one checkpoint takes, at most."""
    return train_size + DRAWS * sum(_below(train_size // GROUPS))


def deviations(
    task: Task, model: torch.nn.Module, device: torch.device, *, step: int, examples: int, precision: str, seed: int
) -> Deviations:
    """|g_B - G|^2 for batches of the training set, at the model's weights as they are, in training mode."""
    weights = [p for p in model.parameters() if p.requires_grad]
    source = make_source(task, seed, device)
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    with torch_drawing_from(DRAWING_SEED, device):
        try:
            return _measured(task, model, weights, source, step, examples, precision)
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _measured(
    task: Task,
    model: torch.nn.Module,
    weights: list[torch.nn.Parameter],
    source: Source,
    step: int,
    examples: int,
    precision: str,
) -> Deviations:
    n, count = source.size, sum(w.numel() for w in weights)
    groups = max(2, min(GROUPS, n, KEPT_BYTES // max(1, 4 * count)))
    size = n // groups
    joined, units = weights[0].new_empty((groups, count), dtype=torch.float32), [0.0] * groups
    full, everything, loss = joined.new_zeros(count), 0.0, 0.0
    for i, batch in enumerate(source.epoch(EPOCH, size)):
        mean_loss, gradient = _gradient(task, model, weights, batch, precision)
        m = float(units_in(task, batch))
        full.add_(gradient, alpha=m)
        everything, loss = everything + m, loss + m * mean_loss
        if i < groups:
            joined[i], units[i] = gradient, m
    full /= everything
    squared: dict[int, list[float]] = {}
    for turn, small in enumerate(_below(n // GROUPS), 1):
        drawn = itertools.islice(source.epoch(EPOCH + turn, small), DRAWS)
        found = [_gradient(task, model, weights, b, precision)[1] for b in drawn if examples_in(b) == small]
        squared[small] = [_squared(g - full) for g in found]
    weight = joined.new_tensor(units)
    while len(joined) > 1:
        squared[size] = [_squared(row - full) for row in joined]
        pairs = len(joined) // 2
        two, shares = joined[: 2 * pairs].unflatten(0, (pairs, 2)), weight[: 2 * pairs].unflatten(0, (pairs, 2))
        joined, weight = (two * shares[..., None]).sum(1) / shares.sum(1)[:, None], shares.sum(1)
        size *= 2
    return Deviations(
        step=step,
        examples=examples,
        loss=loss / everything,
        data_size=n,
        squared_gradient=_squared(full),
        batch_sizes=tuple(sorted(squared)),
        squared=tuple(tuple(squared[b]) for b in sorted(squared)),
    )


def _below(group: int) -> list[int]:
    """Batch sizes below a group's: powers of two."""
    return [2**k for k in range(group.bit_length()) if 2**k < group]


def _gradient(
    task: Task, model: torch.nn.Module, weights: list[torch.nn.Parameter], batch: Batch, precision: str
) -> tuple[float, torch.Tensor]:
    """The mean loss of a batch, and its gradient as one vector (float32); in passes of at most the task's own size."""
    parts = split(mapped(batch, torch.clone), task.batch_size)  # a model may work on its input in place
    units = [float(units_in(task, part)) for part in parts]
    total, loss = max(sum(units), 1.0), 0.0
    vector = weights[0].new_zeros(sum(w.numel() for w in weights), dtype=torch.float32)
    for part, n in zip(parts, units, strict=True):
        if n > 0:
            with torch.autocast(weights[0].device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                mean = task.batch_loss(model, part)
            found = torch.autograd.grad(mean, weights, allow_unused=True)
            flat = [torch.zeros_like(w) if g is None else g.to_dense() for g, w in zip(found, weights, strict=True)]
            vector.add_(torch.cat([g.flatten().float() for g in flat]), alpha=n / total)
            loss += float(mean.detach()) * n / total
    return loss, vector


def _squared(vector: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64)) ** 2
