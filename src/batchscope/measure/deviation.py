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
from batchscope.training.batches import Source, examples_in, make_source, mapped, units_in
from batchscope.training.seeding import torch_drawing_from

GROUPS = 64  # the largest batch compared is half the data set: two draws
DRAWS = 16  # of each size below a group (a guess at what an interval needs)
KEPT_BYTES = 1 << 29  # of groups' gradients held at once; a large model gets fewer groups
EPOCH = 1_000_000  # the first epoch number of the orders drawn here: training does not get there
DRAWING_SEED = 0  # of what the model draws at random (dropout) meanwhile


def cost_of(train_size: int) -> int:
    """Examples that one checkpoint takes, at most."""
    group = max(1, train_size // GROUPS)
    return train_size + DRAWS * sum(_below(group))


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
    n = source.size
    groups = max(2, min(GROUPS, n, KEPT_BYTES // max(1, 4 * sum(w.numel() for w in weights))))
    size = n // groups
    rows, units, losses = [], [], []
    for batch in source.epoch(EPOCH, size):
        loss, gradient = _gradient(task, model, weights, batch, precision)
        rows.append(gradient)
        units.append(float(units_in(task, batch)))
        losses.append(loss)
    share = rows[0].new_tensor(units) / sum(units)
    full = (share[:, None] * torch.stack(rows)).sum(0)
    squared: dict[int, list[float]] = {}
    for turn, small in enumerate(_below(size), 1):
        drawn = itertools.islice(source.epoch(EPOCH + turn, small), DRAWS)
        found = [_gradient(task, model, weights, b, precision)[1] for b in drawn if examples_in(b) == small]
        squared[small] = [_squared(g - full) for g in found]
    joined, weight = torch.stack(rows[:groups]), share[:groups]
    while len(joined) > 1:
        squared[size] = [_squared(row - full) for row in joined]
        pairs = len(joined) // 2
        two, shares = joined[: 2 * pairs].unflatten(0, (pairs, 2)), weight[: 2 * pairs].unflatten(0, (pairs, 2))
        joined, weight = (two * shares[..., None]).sum(1) / shares.sum(1)[:, None], shares.sum(1)
        size *= 2
    return Deviations(
        step=step,
        examples=examples,
        loss=sum(loss * float(s) for loss, s in zip(losses, share, strict=True)),
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
    """The mean loss of a batch, and its gradient as one vector (float32)."""
    batch = mapped(batch, torch.clone)  # a model may work on its input in place
    with torch.autocast(weights[0].device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = task.batch_loss(model, batch)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    pairs = zip(found, weights, strict=True)
    flat = [(torch.zeros_like(w) if g is None else g.to_dense()).flatten().float() for g, w in pairs]
    return float(loss.detach()), torch.cat(flat)


def _squared(vector: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64)) ** 2
