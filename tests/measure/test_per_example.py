"""Are per-example norms right in whole models? Models that are refused: `test_per_example_uncovered.py`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import Loss, agree, examples, gradient, measured, naive, squares, twin
from small_models import CLASSES, LENGTH, VOCABULARY, WIDTH, Checkpointed, M, backward, cross_entropy, mlp, rows, texts
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.measure.per_example import PerExample


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


class Chosen(nn.Module):
    """A layer that not every forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head, self.used = nn.Linear(WIDTH, CLASSES), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.always(x).tanh()
        return self.head(self.sometimes(hidden) if self.used else hidden)


# --- models ---


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


# --- losses and precision ---


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


# --- steps of several passes, and of one example ---


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
