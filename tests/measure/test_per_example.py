"""Are per-example norms right in whole models, and is every model refused in which they would not be?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import Loss, agree, examples, gradient, measured, naive, squares, twin
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchscope.errors import CannotAnswer
from batchscope.measure.gradients import Reading
from batchscope.measure.per_example import PerExample

M, WIDTH, CLASSES, VOCABULARY, LENGTH = 6, 4, 3, 11, 5


def cross_entropy(model: nn.Module, x: Any, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y)


def rows(m: int = M) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, WIDTH) inputs, (m,) classes."""
    generator = torch.Generator().manual_seed(m)
    return torch.randn(m, WIDTH, generator=generator), torch.randint(0, CLASSES, (m,), generator=generator)


def texts(m: int = M, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, length) tokens, (m,) classes."""
    generator = torch.Generator().manual_seed(m)
    return torch.randint(0, VOCABULARY, (m, length), generator=generator), torch.arange(m) % CLASSES


def backward(model: nn.Module, loss: Loss, x: Any, y: torch.Tensor) -> Callable[[], None]:
    return lambda: loss(model, x, y).backward()


def check(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, loss: Loss = cross_entropy, unread: int = 0
) -> PerExample:
    """The source against the naive twin, checked and unchecked; `unread` first steps show nothing."""
    source = PerExample(model)
    readings = measured(source, backward(model, loss, x, y), times=2 + unread)
    assert source.uncovered == {}
    assert readings[:unread] == [None] * unread
    for reading in readings[unread:]:
        agree(reading, naive(model, loss, examples(x, y)))
    return source


def uncovered(model: nn.Module, x: Any, y: torch.Tensor, loss: Loss = cross_entropy) -> dict[str, str]:
    """What the source says after the first step, which it must not read."""
    torch.manual_seed(0)
    source = PerExample(model)
    assert measured(source, backward(model, loss, x, y), times=1) == [None]
    assert not source.armed
    return source.uncovered


# --- models ---


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, CLASSES))


class Tied(nn.Module):
    """An embedding and a head of one weight, a layer that is called twice, two linear layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.twice = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.twice(self.norm(self.twice(self.embedding(x))).relu()))
        return self.head(self.second(self.first(hidden).tanh())).mean(1)


class Attention(nn.Module):
    """Causal attention over tokens, with a bias of the keys, whose gradient is 0 but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x)
        mixed = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), is_causal=True)
        return self.head(h + mixed).mean(1)


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


class Chosen(nn.Module):
    """A layer that not every forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head, self.used = nn.Linear(WIDTH, CLASSES), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.always(x).tanh()
        return self.head(self.sometimes(hidden) if self.used else hidden)


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


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.reentrant = nn.Embedding(VOCABULARY, WIDTH), reentrant
        self.block = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(self.block, self.embedding(x), use_reentrant=self.reentrant)
        return self.head(hidden).mean(1)


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


# --- what is covered ---


@pytest.mark.parametrize("m", [2, 5, 6])
def test_a_perceptron(m: int) -> None:
    check(mlp(), *rows(m))


def test_an_in_place_activation_after_a_layer() -> None:
    torch.manual_seed(0)
    check(nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(inplace=True), nn.Linear(7, CLASSES)), *rows())


def test_tied_weights_and_layers_called_twice() -> None:
    check(Tied(), *texts(), unread=1)  # that a layer is called twice shows in the first step


@pytest.mark.parametrize(("m", "length"), [(6, 5), (6, 6), (4, 8)])
def test_attention(m: int, length: int) -> None:
    check(Attention(), *texts(m, length))


def test_a_convolutional_network_with_frozen_batch_norm() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)]
    x = torch.randn(M, 1, 4, 4)
    check(nn.Sequential(*layers).eval(), x, torch.arange(M) % CLASSES)


def test_frozen_parameters_have_no_norms() -> None:
    model = mlp()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    source = check(model, *rows())
    assert source.names == ["2.weight", "2.bias", "3.weight", "3.bias"]


def test_an_unused_layer_has_norm_zero() -> None:
    model = Chosen()
    source = PerExample(model)
    readings = measured(source, backward(model, cross_entropy, *rows()))
    unused = [i for i, name in enumerate(source.names) if "sometimes" in name]
    for reading in readings:
        agree(reading, naive(model, cross_entropy, examples(*rows())))
        assert reading is not None
        assert float(reading.parts_squared[unused].sum()) == float(reading.mean_squared[unused].sum()) == 0.0


def test_a_layer_is_checked_when_it_is_first_used() -> None:
    model = Chosen()
    source, step = PerExample(model), backward(model, cross_entropy, *rows())
    assert measured(source, step, times=1) != [None]
    model.used = True
    found = measured(source, step, times=3)
    assert found[0] is None  # nothing to check it by: the next measured step has that
    for reading in found[1:]:
        agree(reading, naive(model, cross_entropy, examples(*rows())))
    model.used = False
    agree(measured(source, step, times=1)[0], naive(model, cross_entropy, examples(*rows())))


def test_gradients_that_are_zeroed_and_kept() -> None:
    model = Chosen()
    source = PerExample(model)
    for used in (True, True, False):
        model.used = used
        model.zero_grad(set_to_none=False)
        source.arm()
        cross_entropy(model, *rows()).backward()
        agree(source.read(), naive(model, cross_entropy, examples(*rows())))


def test_dropout_is_part_of_an_examples_gradient() -> None:
    """Twice the same draws: with and without the source, and the naive norms with the masks that were drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 40), nn.Dropout(0.5), nn.Linear(40, CLASSES))
    x, y = rows()
    source, masks = PerExample(model), []
    model[1].register_forward_hook(lambda module, args, output: masks.append((output != 0).double() * 2))
    torch.manual_seed(3)
    reading = measured(source, backward(model, cross_entropy, x, y), times=1)[0]
    state = torch.get_rng_state()
    torch.manual_seed(3)
    cross_entropy(model, x, y).backward()
    assert torch.equal(torch.get_rng_state(), state)
    wide = twin(model)
    first, _, second = wide.children()

    def dropped(i: int) -> torch.Tensor:
        hidden = first(x[i : i + 1].double()) * masks[0][i : i + 1]
        return F.cross_entropy(second(hidden), y[i : i + 1])

    one_by_one = [gradient(wide, dropped(i)) for i in range(M)]
    mean = [torch.stack(each).mean(0) for each in zip(*one_by_one, strict=True)]
    agree(reading, (torch.stack([squares(g) for g in one_by_one]).mean(0), squares(mean)))


def test_checkpointed_activations() -> None:
    check(Checkpointed(reentrant=False), *texts())


def test_autocast() -> None:
    """bfloat16 keeps 8 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 32), nn.PReLU(32), nn.LayerNorm(32), nn.Linear(32, CLASSES))
    (x, y), source = rows(32), PerExample(model)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model, x, y)
        loss.backward()

    readings = measured(source, step)
    assert source.uncovered == {}
    for reading in readings:
        agree(reading, naive(model, cross_entropy, examples(x, y)), rtol=0.05)


def test_a_backward_pass_under_autocast() -> None:
    """Against the manual, and common: it must not narrow the norms, which are products of matrices."""
    torch.manual_seed(0)
    layers = [nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16), nn.Flatten(), nn.Linear(16 * LENGTH, CLASSES)]
    model, (x, y) = nn.Sequential(*layers), texts()

    def inside() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            cross_entropy(model, x, y).backward()

    def outside() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model, x, y)
        loss.backward()

    for a, b in zip(measured(PerExample(model), inside), measured(PerExample(model), outside), strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a.parts_squared, b.parts_squared, rtol=1e-5, atol=1e-9)


def test_a_scaled_loss_scales_both_norms() -> None:
    model, (x, y), scale = mlp(), rows(), 2.0**13
    source = PerExample(model)
    expected = [squared * scale**2 for squared in naive(model, cross_entropy, examples(x, y))]
    for reading in measured(source, lambda: (cross_entropy(model, x, y) * scale).backward()):
        agree(reading, (expected[0], expected[1]))


def test_an_overflow_is_no_reason_to_give_up() -> None:
    model, (x, y) = mlp(), rows()
    source = PerExample(model)
    (reading,) = measured(source, lambda: (cross_entropy(model, x, y) * torch.inf).backward(), times=1)
    assert reading is not None
    assert not bool(torch.isfinite(reading.parts_squared).all())
    assert source.uncovered == {}
    agree(
        measured(source, backward(model, cross_entropy, x, y), times=1)[0], naive(model, cross_entropy, examples(x, y))
    )


def test_counted_tokens() -> None:
    """A mean over counted tokens, of which an example has none to 5."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY))
    x, _ = texts()
    counts = torch.tensor([5, 1, 3, 0, 2, 4])
    y = torch.where(torch.arange(LENGTH) < counts[:, None], x.roll(1, 1), -100)

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)

    told = [i for i in range(M) if counts[i]]
    parts = [(x[i : i + 1], y[i : i + 1]) for i in told]
    expected = naive(model, loss, parts, [float(counts[i] / counts.sum()) for i in told])
    for given in (counts, counts.tolist(), counts.double() / counts.double().mean()):
        readings = measured(PerExample(model), backward(model, loss, x, y), counts=given)
        for reading in readings:
            agree(reading, expected)
            assert reading is not None
            assert reading.parts == 5
            assert (reading.part_size, reading.batch_size) == pytest.approx((1.0, 15**2 / (25 + 1 + 9 + 4 + 16)))


def test_counts_must_fit_the_examples() -> None:
    model = mlp()
    for wrong in ([1.0] * (M - 1), [1.0] * (M - 1) + [-1.0], [0.0] * M):
        with pytest.raises(CannotAnswer):
            measured(PerExample(model), backward(model, cross_entropy, *rows()), counts=wrong)


def test_accumulated_micro_batches_are_one_batch() -> None:
    model, (x, y) = mlp(), rows()

    def step() -> None:
        for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
            (cross_entropy(model, x[part], y[part]) / 3).backward()

    source = PerExample(model)
    for reading in measured(source, step):
        agree(reading, naive(model, cross_entropy, examples(x, y)))
        assert reading is not None
        assert reading.parts == M


def test_two_backward_passes_through_one_forward_pass() -> None:
    model, (x, y) = mlp(), rows()

    def step() -> None:
        output = model(x)
        (0.3 * F.cross_entropy(output, y)).backward(retain_graph=True)
        (0.7 * F.cross_entropy(output, y)).backward()

    first, *later = measured(PerExample(model), step, times=3)
    assert first is None  # its norms were taken one use at a time
    for reading in later:
        agree(reading, naive(model, cross_entropy, examples(x, y)))


def test_evaluation_within_a_measured_step() -> None:
    model, (x, y) = mlp(), rows()

    def step() -> None:
        with torch.no_grad():
            model(x[:3])
        cross_entropy(model, x, y).backward()
        with torch.inference_mode():
            model(x[:3])

    for reading in measured(PerExample(model), step):
        agree(reading, naive(model, cross_entropy, examples(x, y)))


def test_batches_of_one_are_not_measured() -> None:
    model = mlp()
    source = PerExample(model)
    assert measured(source, backward(model, cross_entropy, *rows(1))) == [None, None]
    assert source.why_not == "one example a step"
    assert source.uncovered == {}
    agree(measured(source, backward(model, cross_entropy, *rows()))[1], naive(model, cross_entropy, examples(*rows())))


# --- what is not covered, and must be found so ---


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
