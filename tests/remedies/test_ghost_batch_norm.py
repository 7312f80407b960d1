"""Is ghost batch norm torch's batch norm, applied to the shards one after another?"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchscope.errors import CannotAnswer
from batchscope.measure.coupling import batch_norms
from batchscope.measure.full_loss import FullLoss
from batchscope.remedies.base import Case, by_name
from batchscope.remedies.ghost_batch_norm import GhostBatchNorm, GhostBatchNorm1d, ghost, shards
from batchscope.training.loop import train
from toys import CPU, SIZE, toy, trial

CASE = Case(batch_size=16, own_batch_size=8, own_learning_rate=0.05, train_size=SIZE)


def normed() -> nn.Module:
    """5 -> 8 -> 3, with two layers of batch norm."""
    layers = (nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3), nn.BatchNorm1d(3, affine=False))
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("examples", "size", "expected"),
    [(16, 8, [8, 8]), (21, 8, [8, 8, 5]), (20, 8, [8, 12]), (17, 8, [8, 9]), (5, 8, [5]), (3, 2, [3]), (1, 8, [1])],
)
def test_shards(examples: int, size: int, expected: list[int]) -> None:
    assert shards(examples, size) == expected


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("rows", [16, 21, 20, 5])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (4,)), (nn.BatchNorm2d, (3, 2)), (nn.BatchNorm3d, (2, 2, 2))],
    ids=["1d", "sequence", "2d", "3d"],
)
def test_it_is_batch_norm_on_the_shards(
    kind: type[_BatchNorm], shape: tuple[int, ...], rows: int, momentum: float | None
) -> None:
    torch.manual_seed(0)
    plain = kind(3, momentum=momentum)
    nn.init.normal_(plain.weight)
    changed = ghost(copy.deepcopy(plain), 8)
    x, weigh = torch.randn(rows, 3, *shape) * 2 + 1, torch.randn(rows, 3, *shape)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = changed(ours)
    (out * weigh).sum().backward()
    expected = torch.cat([plain(part) for part in theirs.split(shards(rows, 8))])
    (expected * weigh).sum().backward()
    assert torch.equal(out, expected)
    for name, buffer in plain.named_buffers():
        assert torch.equal(dict(changed.named_buffers())[name], buffer)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)
    for a, b in zip(changed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)


def test_running_statistics_compound() -> None:
    """run <- (1 - m)^k run + sum_j m (1 - m)^(k - j) shard_j."""
    layer = ghost(nn.BatchNorm1d(2, momentum=0.2), 4)
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    layer(x)
    expected = sum(0.2 * 0.8 ** (3 - j) * x[4 * (j - 1) : 4 * j].mean(0) for j in (1, 2, 3))
    torch.testing.assert_close(layer.running_mean, expected)
    assert layer.num_batches_tracked == 3


def test_evaluation_is_torchs() -> None:
    model = normed()
    model(torch.randn(16, 5))
    changed, x = ghost(copy.deepcopy(model), 8).eval(), torch.randn(16, 5)
    assert torch.equal(changed(x), model.eval()(x))


def test_names_parameters_and_states_stay() -> None:
    model = normed()
    names, kept = list(model.state_dict()), list(model.parameters())
    assert ghost(model, 8) is model
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), kept, strict=True))
    normed().load_state_dict(model.state_dict())
    model.load_state_dict(normed().state_dict())
    assert "ghost_size=4" in repr(ghost(copy.deepcopy(model), 4))
    assert "ghost_size=8" in repr(model)


def test_it_is_known_as_batch_norm() -> None:
    model = ghost(normed(), 8)
    assert isinstance(model[1], GhostBatchNorm1d)
    assert batch_norms(model) == ["1", "4"]
    model[1].eval()
    assert batch_norms(model) == ["4"]
    loss = FullLoss(toy(), ghost(normed(), 8), toy().train, CPU, chunk=23)
    assert loss.normed
    assert loss.value(loss.point()) == loss.value(loss.point())
    assert loss.model[1].num_batches_tracked == 0


def test_training_is_that_with_micro_batches() -> None:
    """Shards meet nowhere else in the network, so that a shard trains like a micro-batch of its size."""
    task = toy(model=normed)
    changed = GhostBatchNorm().apply(task, CASE)
    assert not any(isinstance(m, GhostBatchNorm1d) for m in task.model().modules())
    ours = train(changed, trial(16, micro=None), device=CPU)
    theirs = train(task, trial(16, micro=8), device=CPU)
    plain = train(task, trial(16), device=CPU)
    losses = [[line.validation["loss"] for line in result.trace] for result in (ours, theirs, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] != pytest.approx(losses[2][-1], rel=1e-3)


class Own(nn.BatchNorm1d):
    """Somebody's own forward pass."""


@pytest.mark.parametrize(
    ("model", "size", "says"),
    [
        (nn.Sequential(nn.Linear(5, 3)), 8, "got one without"),
        (nn.Sequential(nn.BatchNorm1d(5), nn.SyncBatchNorm(5)), 8, "got SyncBatchNorm at '1'"),
        (nn.Sequential(nn.BatchNorm1d(5), nn.LazyBatchNorm1d()), 8, "got LazyBatchNorm1d"),
        (nn.Sequential(nn.BatchNorm1d(5), Own(5)), 8, "got Own"),
        (nn.BatchNorm1d(5), 1, "shards of at least 2 examples, got 1"),
    ],
)
def test_refusals(model: nn.Module, size: int, says: str) -> None:
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(CannotAnswer, match=says):
        ghost(model, size)
    assert [type(m) for m in model.modules()] == kinds


class Folded(nn.Module):
    """Batch norm over (examples x positions, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(1), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(x.reshape(-1, 1)).view(len(x), 5))


def frozen() -> nn.Module:
    model = normed()
    model[1].eval()
    model[4].eval()
    return model


def test_why_not() -> None:
    remedy = GhostBatchNorm()
    assert remedy.why_not(toy(model=normed), CASE) is None
    for task, says in (
        (toy(), "expected a model with batch norm, got one without"),
        (toy(model=frozen), "layers in eval mode"),
        (toy(model=Folded), "got 10 rows of 2 examples at 'norm'"),
        (toy(model=normed, batch_norm="synchronised"), 'got batch_norm="synchronised"'),
    ):
        assert says in (remedy.why_not(task, CASE) or "")
    assert "16 examples in shards of 16" in (GhostBatchNorm(size=16).why_not(toy(model=normed), CASE) or "")


def test_why_not_leaves_no_mark() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    GhostBatchNorm().why_not(toy(model=normed), CASE)
    assert torch.equal(torch.rand(1), expected)


def test_size_of_the_shards() -> None:
    for remedy, size in ((GhostBatchNorm(), 8), (GhostBatchNorm(size=4), 4)):
        assert remedy.apply(toy(model=normed), CASE).model()[1].ghost_size == size
    assert GhostBatchNorm().apply(toy(model=normed, lr=9.0), CASE).lr == CASE.own_learning_rate
    both = by_name("ghost batch norm (size=4) + linear scaling").apply(toy(model=normed), CASE)
    assert (both.lr, both.model()[1].ghost_size) == (2 * CASE.own_learning_rate, 4)
    assert GhostBatchNorm(size=4).name == "ghost batch norm (size=4)"
