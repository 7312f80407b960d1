"""Do micro-batches give the squared norms of their own gradients, and does a source go without a trace?"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import Parts, agree, measured, naive, sized
from small_models import CLASSES, WIDTH, Net, cross_entropy, hooks, rows
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.measure.accumulated import MicroBatches
from batchscope.measure.gradients import Source
from batchscope.measure.halves import Halves
from batchscope.measure.per_example import PerExample


def accumulated(model: nn.Module, parts: Parts, weights: list[float] | None = None) -> Callable[[], None]:
    """A step over micro-batches, each divided by their number or weighed."""
    shares = weights or [1 / len(parts)] * len(parts)

    def step() -> None:
        for (x, y), share in zip(parts, shares, strict=True):
            (cross_entropy(model, x, y) * share).backward()

    return step


# --- micro-batches of one process ---


@pytest.mark.parametrize("k", [2, 3, 5])
def test_equal_micro_batches(k: int) -> None:
    model, parts = Net(), [rows(4, i) for i in range(k)]
    source = MicroBatches(model)
    for reading in measured(source, accumulated(model, parts)):
        agree(reading, naive(model, cross_entropy, parts))
        assert sized(reading) == pytest.approx((k, 4, 4 * k))
    assert source.name == "micro-batches"


def test_unequal_micro_batches_need_counts() -> None:
    model, parts = Net(), [rows(4), rows(2, 1), rows(3, 2)]
    weights = [4 / 9, 2 / 9, 3 / 9]
    source = MicroBatches(model)
    assert measured(source, accumulated(model, parts, weights)) == [None, None]
    assert "counts" in source.why_not
    for given in ([4, 2, 3], torch.tensor([4, 2, 3])):
        (reading,) = measured(source, accumulated(model, parts, weights), times=1, counts=given)
        agree(reading, naive(model, cross_entropy, parts, weights))
        assert sized(reading) == pytest.approx((3, (16 + 4 + 9) / 9, 9))
    for wrong in ([4, 2], [4, 2, 0], [4, 2, -3]):
        with pytest.raises(CannotAnswer):
            measured(source, accumulated(model, parts, weights), counts=wrong)
    assert not source.armed


def test_one_backward_pass_is_one_part() -> None:
    model = Net()
    source = MicroBatches(model)
    assert measured(source, accumulated(model, [rows(4)])) == [None, None]
    assert source.why_not == "one micro-batch a step"


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_parameter_that_one_micro_batch_does_not_use(set_to_none: bool) -> None:
    model, parts = Net(), [rows(4), rows(4, 1)]

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, Net)
        model.used = bool(torch.equal(x.float(), parts[1][0]))
        return cross_entropy(model, x, y)

    source = MicroBatches(model)
    for _ in range(3):
        model.zero_grad(set_to_none=set_to_none)
        source.arm()
        for x, y in parts:
            (loss(model, x, y) / 2).backward()
        agree(source.read(), naive(model, loss, parts))


def test_several_backward_passes_through_one_forward_pass_are_refused() -> None:
    """Norms of what each adds do not tell the norm of their sum."""
    model, (x, y) = Net(), rows(4)

    def step() -> None:
        for _ in range(2):
            output = model(x)
            F.cross_entropy(output, y).backward(retain_graph=True)
            output.square().mean().backward()

    source = MicroBatches(model)
    assert measured(source, step, times=1) == [None]
    assert source.why_not == "several backward passes through one forward pass"


def test_a_parameter_that_is_frozen_later() -> None:
    model, parts = Net(), [rows(4), rows(4, 1)]
    for source in (MicroBatches(model), MicroBatches(model)):
        source.copying = source.name == "micro-batches"
        measured(source, accumulated(model, parts), times=1)
        model.sometimes.weight.requires_grad_(False)
        (reading,) = measured(source, accumulated(model, parts), times=1)
        assert reading is not None
        index = source.names.index("sometimes.weight")
        assert float(reading.mean_squared[index]) == float(reading.parts_squared[index]) == 0.0
        model.sometimes.weight.requires_grad_(True)


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, WIDTH, sparse=True), nn.Flatten(), nn.Linear(3 * WIDTH, CLASSES))
    parts = [(torch.randint(0, 7, (4, 3)), torch.arange(4) % CLASSES) for _ in range(2)]
    for reading in measured(MicroBatches(model), accumulated(model, parts)):
        agree(reading, naive(model, cross_entropy, parts))


# --- any source ---


@pytest.mark.parametrize("kind", [MicroBatches, PerExample, Halves])
def test_copies_are_what_the_backward_pass_left(kind: Callable[[nn.Module], Source]) -> None:
    """A framework that clips before it calls: the same numbers."""
    model, parts = Net(), [rows(4)] if kind is Halves else [rows(4), rows(4, 1)]
    plain, copying = kind(model), kind(model)
    copying.copying = True

    def clipped() -> None:
        accumulated(model, parts)()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

    for a, b in zip(measured(plain, accumulated(model, parts)), measured(copying, clipped), strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a.mean_squared, b.mean_squared)
        torch.testing.assert_close(a.parts_squared, b.parts_squared)


@pytest.mark.parametrize("kind", [MicroBatches, PerExample, Halves])
def test_hooks_are_gone_after_a_step_and_in_copies(kind: Callable[[nn.Module], Source]) -> None:
    model, (x, y) = Net(), rows(4)
    source = kind(model)
    source.arm()
    assert source.armed
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        cross_entropy(other, x, y).backward()
    assert source.examples == []
    cross_entropy(model, x, y).backward()
    source.read()
    assert not source.armed
    assert hooks(model) == 0


@pytest.mark.parametrize("kind", [MicroBatches, PerExample, Halves])
def test_a_backward_pass_after_the_hooks_are_gone(kind: Callable[[nn.Module], Source]) -> None:
    model, (x, y) = Net(), rows(4)
    source = kind(model)
    source.arm()
    loss = cross_entropy(model, x, y)
    source.disarm()
    loss.backward()
    agree(
        measured(MicroBatches(model), accumulated(model, [rows(4), rows(4, 1)]))[1],
        naive(model, cross_entropy, [rows(4), rows(4, 1)]),
    )


def test_no_gradients_are_an_error_of_one_sentence() -> None:
    source = MicroBatches(Net())
    source.arm()
    with pytest.raises(CannotAnswer, match="expected gradients after the backward pass, got none"):
        source.read()
    assert not source.armed
