"""Do the layers' formulas give every example's squared gradient norm? Against autograd, one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import agree, examples, measured, naive
from small_models import CLASSES, cross_entropy
from torch import nn

from batchscope.measure.layers import by_example, formula_of
from batchscope.measure.per_example import PerExample

M = 5  # examples


class Head(nn.Module):
    """Any layer, then a frozen map of each example to classes: the layer's gradients are the only ones."""

    def __init__(self, layer: nn.Module, *, flattened: bool = False) -> None:
        super().__init__()
        self.layer, self.flattened = layer, flattened

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Nonlinear in the layer's output, and unlike for every position."""
        m = len(x)
        hidden = self.layer(x.flatten(0, 1) if self.flattened else x).reshape(m, -1).tanh()
        mixed = torch.linspace(-1, 2, hidden.shape[1] * CLASSES, dtype=hidden.dtype).sin()
        return hidden @ mixed.reshape(-1, CLASSES)


def check(layer: nn.Module, x: torch.Tensor, *, flattened: bool = False) -> None:
    """A layer against the naive twin: at the checked step, and at one that is not checked any more."""
    torch.manual_seed(1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model, y = Head(layer, flattened=flattened), torch.arange(M) % CLASSES
    source = PerExample(model)
    readings = measured(source, lambda: cross_entropy(model, x, y).backward())
    assert source.uncovered == {}
    expected = naive(model, cross_entropy, examples(x, y))
    for reading in readings:
        agree(reading, expected)
        assert reading is not None
        assert (reading.parts, reading.part_size, reading.batch_size) == (M, 1.0, M)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def numbers(*shape: int, below: int = 7) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(2))


class Scale(nn.Module):
    """Somebody's own layer: an elementwise affine map, and an integer buffer that counts calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.weight.exp() + self.bias


class Kernel(nn.Linear):
    """A subclass with a forward of its own is another layer."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input.square(), self.weight, self.bias)


LINEAR = {
    "a row an example": (lambda: nn.Linear(6, 4), floats(M, 6)),
    "no bias": (lambda: nn.Linear(6, 4, bias=False), floats(M, 6)),
    "few positions, wide: Gram": (lambda: nn.Linear(30, 20), floats(M, 3, 30)),
    "many positions, narrow: direct": (lambda: nn.Linear(3, 2), floats(M, 40, 3)),
    "two dimensions of positions": (lambda: nn.Linear(6, 4), floats(M, 3, 2, 6)),
}
EMBEDDING = {
    "rows repeat": (lambda: nn.Embedding(7, 4), numbers(M, 6)),
    "one row an example": (lambda: nn.Embedding(7, 4), numbers(M)),
    "padding": (lambda: nn.Embedding(7, 4, padding_idx=0), numbers(M, 6, below=3)),
    "int32": (lambda: nn.Embedding(7, 4), numbers(M, 6).int()),
}
CONVOLUTION = {
    "1-D": (lambda: nn.Conv1d(2, 4, 3), floats(M, 2, 9)),
    "1-D, stride, padding, dilation": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2), floats(M, 2, 9)),
    "1-D, groups": (lambda: nn.Conv1d(4, 6, 2, groups=2), floats(M, 4, 5)),
    "2-D": (lambda: nn.Conv2d(2, 4, 3), floats(M, 2, 6, 5)),
    "2-D, no bias": (lambda: nn.Conv2d(2, 4, 3, bias=False), floats(M, 2, 6, 5)),
    "2-D, everything": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        floats(M, 4, 8, 7),
    ),
    "same": (lambda: nn.Conv2d(2, 4, (3, 2), padding="same", dilation=2), floats(M, 2, 6, 5)),
    "valid": (lambda: nn.Conv2d(2, 4, 3, padding="valid"), floats(M, 2, 6, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), floats(M, 4, 5, 5)),
    "one position: a linear map": (lambda: nn.Conv2d(2, 8, 4), floats(M, 2, 4, 4)),
    "few positions, wide: Gram": (lambda: nn.Conv2d(16, 32, 3), floats(M, 16, 4, 4)),
    "channels last": (lambda: nn.Conv2d(2, 4, 3), floats(M, 2, 6, 5).to(memory_format=torch.channels_last)),
    "3-D, by example": (lambda: nn.Conv3d(1, 2, 2), floats(M, 1, 3, 3, 3)),
    "padded with itself, by example": (
        lambda: nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"),
        floats(M, 2, 6),
    ),
    "transposed, by example": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), floats(M, 2, 3, 3)),
}
NORMALISATION = {
    "layer norm": (lambda: nn.LayerNorm(6), floats(M, 4, 6)),
    "layer norm, a row an example": (lambda: nn.LayerNorm(6), floats(M, 6)),
    "layer norm over two dimensions": (lambda: nn.LayerNorm([4, 6]), floats(M, 4, 6)),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), floats(M, 4, 6)),
    "RMS norm": (lambda: nn.RMSNorm(6), floats(M, 4, 6)),
    "RMS norm, epsilon": (lambda: nn.RMSNorm(6, eps=0.1), floats(M, 4, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), floats(M, 6, 3, 2)),
    "group norm, no positions": (lambda: nn.GroupNorm(2, 6), floats(M, 6)),
    "instance norm, by example": (lambda: nn.InstanceNorm1d(3, affine=True), floats(M, 3, 5)),
}
OTHERS = {
    "PReLU": (lambda: nn.PReLU(6), floats(M, 6, 2)),
    "somebody's own": (lambda: Scale(6), floats(M, 4, 6)),
    "a subclass": (lambda: Kernel(6, 4), floats(M, 6)),
}


def cases(table: Mapping[str, tuple[Callable[[], nn.Module], torch.Tensor]]) -> Any:
    return pytest.mark.parametrize(("layer", "x"), table.values(), ids=table.keys())


@cases(LINEAR)
def test_linear(layer: Callable[[], nn.Module], x: torch.Tensor) -> None:
    check(layer(), x)


@cases(EMBEDDING)
def test_embedding(layer: Callable[[], nn.Module], x: torch.Tensor) -> None:
    check(layer(), x)


@cases(CONVOLUTION)
def test_convolution(layer: Callable[[], nn.Module], x: torch.Tensor) -> None:
    check(layer(), x)


@cases(NORMALISATION)
def test_normalisation(layer: Callable[[], nn.Module], x: torch.Tensor) -> None:
    check(layer(), x)


@cases(OTHERS)
def test_other_layers_example_by_example(layer: Callable[[], nn.Module], x: torch.Tensor) -> None:
    assert formula_of(layer()) is None
    check(layer(), x)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.BatchNorm1d(6), floats(M, 6)),
        (nn.BatchNorm1d(6), floats(M, 6, 3)),
        (nn.BatchNorm2d(6), floats(M, 6, 3, 2)),
        (nn.BatchNorm3d(2), floats(M, 2, 3, 2, 2)),
    ],
)
def test_batch_norm_in_eval_mode(layer: nn.BatchNorm1d, x: torch.Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    check(layer.eval(), x)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 4), floats(M, 4, 6)),
        (nn.Embedding(7, 4), numbers(M, 6)),
        (nn.Conv2d(2, 4, 3), floats(M, 3, 2, 5, 5)),
        (nn.Conv1d(4, 6, 2, groups=2), floats(M, 3, 4, 5)),
        (nn.GroupNorm(2, 6), floats(M, 3, 6, 2)),
        (nn.BatchNorm1d(6).eval(), floats(M, 3, 6)),
        (nn.LayerNorm(6), floats(M, 3, 6)),
        (Scale(6), floats(M, 3, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_positions_flattened_into_the_first_dimension(layer: nn.Module, x: torch.Tensor) -> None:
    check(layer, x, flattened=True)


def test_each_half_of_a_layer_may_be_frozen() -> None:
    for kind in (lambda: nn.Linear(6, 4), lambda: nn.LayerNorm(6), lambda: Scale(6)):
        for frozen in ("weight", "bias"):
            layer = kind()
            getattr(layer, frozen).requires_grad_(False)
            check(layer, floats(M, 6))
    layer = nn.Conv1d(2, 4, 3)
    layer.weight.requires_grad_(False)
    check(layer, floats(M, 2, 9))


def test_double_precision() -> None:
    torch.manual_seed(0)
    model, x, y = Head(nn.Linear(6, 4)).double(), floats(M, 6).double(), torch.arange(M) % CLASSES
    readings = measured(PerExample(model), lambda: cross_entropy(model, x, y).backward())
    for reading in readings:
        agree(reading, naive(model, cross_entropy, examples(x, y)))


def test_a_layer_that_is_computed_again_keeps_its_buffers() -> None:
    layer = Scale(6)
    model, x, y = Head(layer), floats(M, 6), torch.arange(M) % CLASSES
    measured(PerExample(model), lambda: cross_entropy(model, x, y).backward(), times=3)
    assert int(layer.calls) == 3


def test_too_many_numbers_are_not_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.measure.layers.LARGEST", M * 6 * 2 - 1)
    with pytest.raises(MemoryError):
        by_example(Scale(6), floats(M, 6), floats(M, 6), M)


def test_settings_that_change_a_gradient_have_no_formula() -> None:
    assert formula_of(nn.Embedding(5, 3, scale_grad_by_freq=True)) is None
    assert formula_of(nn.Embedding(5, 3, max_norm=1.0)) is None
    assert formula_of(nn.Embedding(5, 3, sparse=True)) is None
    assert formula_of(nn.Conv2d(2, 3, 3, padding_mode="reflect")) is None
    assert formula_of(Kernel(2, 2)) is None
    assert formula_of(nn.Linear(2, 2)) is not None
