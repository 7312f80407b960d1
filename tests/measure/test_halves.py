"""Are the two halves' gradients those of two batches, for any model, and refused where they would not be?"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import Loss, agree, halves, measured, naive
from small_models import CLASSES, WIDTH, backward, cross_entropy, rows
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchscope.measure.halves import Halves, one_output


def penalised(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    used = [p for name, p in model.named_parameters() if name != "unused"]
    return cross_entropy(model, x, y) + 0.1 * sum(p.square().sum() for p in used)


def weights(m: int) -> list[float]:
    return [(m // 2) / m, (m - m // 2) / m]


class Any_(nn.Module):
    """No layers at all: parameters used by hand, one of them unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Parameter(torch.randn(WIDTH, 6)), nn.Parameter(torch.randn(6, CLASSES))
        self.unused = nn.Parameter(torch.randn(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.a).sin() @ self.b


class Wrapped(nn.Module):
    """Returns whatever a function makes of the output."""

    def __init__(self, inner: nn.Module, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.inner(x))


@pytest.mark.parametrize("loss", [cross_entropy, penalised])
@pytest.mark.parametrize("m", [2, 3, 8, 9])
def test_any_model(m: int, loss: Loss) -> None:
    model, (x, y) = Any_(), rows(m)
    source = Halves(model)
    expected = naive(model, loss, halves(x, y), weights(m))
    for reading in measured(source, backward(model, loss, x, y), times=3):
        agree(reading, expected)
        assert reading is not None
        assert reading.parts == 2
        assert reading.part_size == pytest.approx(((m // 2) ** 2 + (m - m // 2) ** 2) / m)  # m / 2 of an even batch
        assert reading.batch_size == pytest.approx(m)
    assert source.penalised is (loss is penalised)


def test_without_a_penalty_one_more_pass_is_made_and_with_one_two(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: calls.append(1) or real(*args, **options))
    for loss, expected in ((cross_entropy, [2, 1, 1]), (penalised, [2, 2, 2])):
        source, found = Halves(Any_()), []
        for _ in range(3):
            calls.clear()
            measured(source, backward(source.model, loss, *rows(6)), times=1)
            found.append(len(calls))
        assert found == expected


def test_batch_norm_uses_the_whole_batchs_statistics() -> None:
    """Halves of one graph: nothing is computed again, the running statistics move once a step."""
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(WIDTH, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)), rows(8)
    assert measured(Halves(model), backward(model, cross_entropy, x, y))[1] is not None
    assert int(model.state_dict()["1.num_batches_tracked"]) == 2


def test_dropout_draws_once() -> None:
    model, (x, y) = nn.Sequential(nn.Linear(WIDTH, 30), nn.Dropout(0.5), nn.Linear(30, CLASSES)), rows(8)
    source = Halves(model)
    torch.manual_seed(1)
    (reading,) = measured(source, backward(model, cross_entropy, x, y), times=1)
    state = torch.get_rng_state()
    assert reading is not None
    whole = [p.grad.clone() for p in source.parameters if p.grad is not None]
    torch.manual_seed(1)
    model.zero_grad()
    losses = F.cross_entropy(model(x), y, reduction="none")
    assert torch.equal(torch.get_rng_state(), state)
    first = torch.autograd.grad(losses[:4].mean(), source.parameters, retain_graph=True)
    second = torch.autograd.grad(losses[4:].mean(), source.parameters)
    expected = [(a.square().sum() + b.square().sum()) / 2 for a, b in zip(first, second, strict=True)]
    mean = [((a + b) / 2).square().sum() for a, b in zip(first, second, strict=True)]
    agree(reading, (torch.stack(expected).double(), torch.stack(mean).double()))
    for a, b, g in zip(first, second, whole, strict=True):
        torch.testing.assert_close(g, (a + b) / 2)


def test_several_backward_passes_through_one_forward_pass() -> None:
    model, (x, y) = Any_(), rows(8)

    def step() -> None:
        output = model(x)
        (0.3 * F.cross_entropy(output, y)).backward(retain_graph=True)
        (0.7 * F.cross_entropy(output, y)).backward()

    source = Halves(model)
    for reading in measured(source, step):
        agree(reading, naive(model, cross_entropy, halves(x, y)))
    assert source.penalised is False


def test_counted_tokens() -> None:
    torch.manual_seed(0)
    model, m, length = nn.Sequential(nn.Embedding(7, WIDTH), nn.Linear(WIDTH, 7)), 5, 4
    x, counts = torch.randint(0, 7, (m, length)), torch.tensor([4, 0, 1, 3, 2])
    y = torch.where(torch.arange(length) < counts[:, None], x.roll(1, 1), -100)

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)

    expected = naive(model, loss, halves(x, y), [0.4, 0.6])
    for reading in measured(Halves(model), backward(model, loss, x, y), counts=counts):
        agree(reading, expected)
        assert reading is not None
        spread = 0.4**2 / 2 + 0.6**2 / 3
        assert (reading.part_size, reading.batch_size) == pytest.approx((0.52 / spread, 1 / spread))
    nothing = torch.tensor([0, 0, 5, 3, 2])
    assert measured(Halves(model), backward(model, loss, x, y), times=1, counts=nothing) == [None]


def test_a_sparse_embedding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, WIDTH, sparse=True), nn.Flatten(), nn.Linear(3 * WIDTH, CLASSES))
    x, y = torch.randint(0, 7, (6, 3)), torch.arange(6) % CLASSES
    for reading in measured(Halves(model), backward(model, cross_entropy, x, y)):
        agree(reading, naive(model, cross_entropy, halves(x, y)))


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_half_precision(precision: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, CLASSES)), rows(8)
    expected = naive(model, cross_entropy, halves(x, y))
    if precision == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    source = Halves(model)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = cross_entropy(model, x, y)
        loss.backward()

    for reading in measured(source, step):
        agree(reading, expected, rtol=0.05)
    assert source.penalised is False


def test_an_overflow_does_not_settle_whether_there_is_a_penalty() -> None:
    model, (x, y) = Any_(), rows(6)
    source = Halves(model)
    (reading,) = measured(source, lambda: (penalised(model, x, y) * math.inf).backward(), times=1)
    assert reading is not None
    assert not bool(torch.isfinite(reading.mean_squared).all())
    assert source.penalised is None
    for found in measured(source, backward(model, penalised, x, y)):
        agree(found, naive(model, penalised, halves(x, y)))


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool, before: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, WIDTH) if before else nn.Identity()
        self.block = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, WIDTH))
        self.head, self.reentrant = nn.Linear(WIDTH, CLASSES), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.detach().requires_grad_())
        return self.head(checkpoint(self.block, hidden, use_reentrant=self.reentrant))


def test_checkpointed_activations() -> None:
    model, (x, y) = Checkpointed(reentrant=False), rows(6)
    for reading in measured(Halves(model), backward(model, cross_entropy, x, y)):
        agree(reading, naive(model, cross_entropy, halves(x, y)))


@pytest.mark.parametrize(
    ("before", "why"), [(True, "a second backward pass"), (False, "parameter block.0.weight gets")]
)
def test_reentrant_checkpoints_are_refused(before: bool, why: str) -> None:
    model = Checkpointed(reentrant=True, before=before)
    source = Halves(model)
    assert measured(source, backward(model, cross_entropy, *rows(6)), times=1) == [None]
    assert source.lasting
    assert source.why_not.startswith(why)


# --- which tensor is the output ---


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: {"logits": out, "hidden": out * 2},
        lambda out: SimpleNamespace(logits=out, loss=None),
        lambda out: (out,),
        lambda out: [out, out.detach(), torch.zeros(())],
        lambda out: {"only": out},
    ],
    ids=["mapping with logits", "object with logits", "tuple", "list", "mapping"],
)
def test_the_output_in_a_container(wrap: Callable[[torch.Tensor], Any]) -> None:
    model, (x, y) = Any_(), rows(7)
    wrapped = Wrapped(model, wrap)

    def loss(_: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found = one_output(wrapped(x), len(x))
        assert found is not None
        return F.cross_entropy(found, y)

    source = Halves(wrapped)
    for reading in measured(source, backward(wrapped, loss, x, y)):
        agree(reading, naive(model, cross_entropy, halves(x, y), weights(7)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: (out, out * 2),
        lambda out: {"a": out, "b": out},
        lambda out: out.T,
        lambda out: out.sum(),
        lambda out: SimpleNamespace(prediction=out),
        lambda out: None,
        lambda out: out.detach().requires_grad_(),
    ],
    ids=["two", "two in a mapping", "not batch-first", "a number", "unknown object", "nothing", "detached"],
)
def test_no_single_output(wrap: Callable[[torch.Tensor], Any]) -> None:
    model, (x, y) = Any_(), rows(7)
    source = Halves(Wrapped(model, wrap))

    def step() -> None:
        source.model(x)
        cross_entropy(model, x, y).backward()

    assert measured(source, step, times=1) == [None]
    assert source.why_not
    assert not source.armed


def test_batches_of_one_are_not_measured() -> None:
    model = Any_()
    source = Halves(model)
    assert measured(source, backward(model, cross_entropy, *rows(1))) == [None, None]
    assert source.why_not == "one example a step"
    assert not source.lasting
    agree(measured(source, backward(model, cross_entropy, *rows(4)))[0], naive(model, cross_entropy, halves(*rows(4))))


def test_several_forward_passes_are_not_measured() -> None:
    model, (x, y) = Any_(), rows(6)
    source = Halves(model)
    assert measured(source, lambda: F.cross_entropy(model(x) + model(-x), y).backward(), times=1) == [None]
    assert source.why_not == "2 forward passes in one step, not 1"


def test_a_loss_beside_the_output_of_a_parameter_of_its_own() -> None:
    """A weight that only the loss uses (a learnt temperature) has no gradient through the output."""
    model, (x, y) = Any_(), rows(6)

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, Any_)
        return F.cross_entropy(model(x) * model.unused.sum(), y)

    source = Halves(model)
    assert measured(source, backward(model, loss, x, y), times=1) == [None]
    assert source.lasting
    assert source.why_not == "parameter unused gets a gradient that does not come through the model's output"
