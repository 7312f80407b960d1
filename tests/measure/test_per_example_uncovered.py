"""Is every model refused in which per-example norms would not be right?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import Loss, measured
from small_models import CLASSES, LENGTH, VOCABULARY, WIDTH, Checkpointed, M, backward, cross_entropy, mlp, rows, texts
from torch import nn

from batchscope.measure.gradients import Reading
from batchscope.measure.per_example import PerExample


def uncovered(model: nn.Module, x: Any, y: torch.Tensor, loss: Loss = cross_entropy) -> dict[str, str]:
    """What the source says after the first step, which it must not read."""
    torch.manual_seed(0)
    source = PerExample(model)
    assert measured(source, backward(model, loss, x, y), times=1) == [None]
    assert not source.armed
    return source.uncovered


class WithPositions(nn.Module):
    """Adds an embedding of arange(T), which has no examples: row t of it is position t of all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(h.tanh()).mean(1)


class Sequence(nn.Module):
    """Turns to sequences first, as recurrent layers and attention do by default."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inner(self.embedding(x).transpose(0, 1)).tanh().cumsum(0)
        return self.head(h.transpose(0, 1)).mean(1)


class Functional(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self, *, besides: bool) -> None:
        super().__init__()
        self.layer, self.head, self.besides = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES), besides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, self.layer.weight).tanh()
        return self.head(hidden + self.layer(x) if self.besides else hidden)


class Prefixed(nn.Module):
    """Has a parameter of its own beside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix, self.head = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * self.prefix)


class Recurrent(nn.Module):
    """A layer that returns several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class MultiHead(nn.Module):
    """`nn.MultiheadAttention` uses its output layer's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


class Noisy(nn.Module):
    """A leaf that draws at random whenever it is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * torch.randn_like(x)


class Masked(nn.Module):
    """A leaf with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return x * self.weight * factor


class WithMasked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.masked, self.head = Masked(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.masked(x, x.sign()))


# --- models ---


def test_a_layers_weight_used_without_the_layer() -> None:
    assert "layer.weight" in uncovered(Functional(besides=False), *rows())
    assert "layer.weight" in uncovered(Functional(besides=True), *rows())


def test_a_parameter_beside_layers() -> None:
    assert PerExample(Prefixed()).uncovered == {"prefix": "Prefixed uses it beside other layers"}
    assert set(uncovered(Prefixed(), *rows())) == {"prefix"}


@pytest.mark.parametrize(("m", "length"), [(6, 5), (6, 6), (6, 12)])
def test_positions_that_are_not_examples(m: int, length: int) -> None:
    assert set(uncovered(WithPositions(), *texts(m, length))) == {"positions.weight"}


@pytest.mark.parametrize(("m", "length"), [(6, 5), (6, 6), (6, 12)])
def test_sequences_first(m: int, length: int) -> None:
    assert {"inner.weight", "inner.bias"} <= set(uncovered(Sequence(), *texts(m, length)))


def test_layers_that_return_several_tensors() -> None:
    x, y = torch.randn(M, LENGTH, WIDTH), torch.arange(M) % CLASSES
    found = uncovered(Recurrent(), x, y)
    assert {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"} == set(found)


def test_multihead_attention() -> None:
    found = uncovered(MultiHead(), torch.randn(M, LENGTH, WIDTH), torch.arange(M) % CLASSES)
    assert {"attention.in_proj_weight", "attention.out_proj.weight"} <= set(found)
    assert "head.weight" not in found


def test_reentrant_checkpoints() -> None:
    assert uncovered(Checkpointed(reentrant=True), *texts())


def test_a_layer_that_draws_when_it_is_computed_again() -> None:
    state = torch.get_rng_state()
    model = nn.Sequential(Noisy(), nn.Linear(WIDTH, CLASSES))
    torch.set_rng_state(state)
    found = uncovered(model, *rows())
    assert set(found) == {"0.weight"}
    assert "Noisy cannot be taken apart" in found["0.weight"]


def test_a_layer_with_two_inputs() -> None:
    assert set(uncovered(WithMasked(), *rows())) == {"masked.weight"}


@pytest.mark.parametrize("normalise", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_weight_that_is_computed(normalise: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(normalise(nn.Linear(WIDTH, 5)), nn.Tanh(), nn.Linear(5, CLASSES)).eval()
    assert any("original" in name for name in uncovered(model, *rows()))


@pytest.mark.parametrize("embedding", [{"max_norm": 0.5}, {"sparse": True}, {"scale_grad_by_freq": True}])
def test_embeddings_with_settings_of_their_own(embedding: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH, **embedding), nn.Flatten(), nn.Linear(WIDTH * LENGTH, CLASSES)
    )
    weight = model.state_dict()["0.weight"].clone()
    if "max_norm" in embedding:
        model(texts()[0])
        weight = model.state_dict()["0.weight"].clone()
    assert "0.weight" in uncovered(model, *texts())
    assert torch.equal(model.state_dict()["0.weight"], weight)


# --- steps ---


def test_a_penalty_on_the_weights() -> None:
    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model, x, y) + 0.1 * sum(p.square().sum() for p in model.parameters())

    assert uncovered(mlp(), *rows(), loss)


def test_gradients_that_were_there_before() -> None:
    """`step` after every micro-batch: `.grad` holds more than this batch."""
    model, (x, y) = mlp(), rows()

    def step() -> None:
        cross_entropy(model, x.flip(1), y).backward()
        source.arm()
        cross_entropy(model, x, y).backward()

    source = PerExample(model)
    assert measured(source, step, times=1) == [None]
    assert source.uncovered


def test_two_forward_passes_before_one_backward_pass() -> None:
    model, (x, y) = mlp(), rows()

    def step() -> None:
        F.cross_entropy(model(x) + model(-x), y).backward()

    source = PerExample(model)
    assert measured(source, step, times=1) == [None]
    assert "several forward passes" in next(iter(source.uncovered.values()))


def test_outputs_that_nothing_can_be_checked_by() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x), self.b(x)

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first, second = model(x)
        return F.cross_entropy(first, y) + F.cross_entropy(second, y)

    assert "no single output" in uncovered(Two(), *rows(), loss)["a.weight"]


def test_batch_norm_that_is_thawed_later_gives_no_numbers() -> None:
    """With the batch's own statistics there is no gradient of one example, whatever was checked before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).eval()
    source, step = PerExample(model), backward(model, cross_entropy, *rows())
    assert measured(source, step, times=1) != [None]
    model.train()
    (reading,) = measured(source, step, times=1)
    assert reading is not None
    assert not bool(torch.isfinite(reading.parts_squared).any())


def test_a_failure_in_a_later_step_is_that_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.PReLU(WIDTH), nn.Linear(WIDTH, CLASSES)), rows()
    source, step = PerExample(model), backward(model, cross_entropy, x, y)
    assert measured(source, step, times=1) != [None]
    with monkeypatch.context() as broken:
        broken.setattr("batchscope.measure.layers.LARGEST", 1)
        assert measured(source, step, times=1) == [None]
        assert "PReLU cannot be taken apart" in source.why_not
    (reading,) = measured(source, step, times=1)
    assert isinstance(reading, Reading)
    assert source.uncovered == {}
