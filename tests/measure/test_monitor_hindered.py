"""What stands in a monitor's way? It goes on with another source, says what a reader must know, or refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monitored import FIRST, M, Positions, batch, expected, mlp, pairs, train, with_state
from naive_gradients import halves
from small_models import CLASSES, WIDTH, cross_entropy, hooks
from torch import nn

from batchscope.errors import CannotAnswer, UnsupportedTask, UsageError
from batchscope.measure.monitor import NoiseMonitor


class Two(nn.Module):
    """Two outputs, one computed from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, CLASSES), nn.Linear(CLASSES, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x), self.b(self.a(x))


# --- another source, or fewer steps ---


def test_parts_where_examples_are_not_to_be_had() -> None:
    weights: list[nn.Module] = []
    report = train(Positions(), weights=weights).report()
    assert report.source == "parts"
    assert [n.step for n in report.measurements] == list(range(FIRST + 1, 12))  # the first step showed that
    assert pairs(report.measurements) == expected(weights, report.measurements, halves)
    assert "Source 'examples' was not used: parameter positions.weight" in report.notes[0]


def test_batch_norm_is_said() -> None:
    report = train(with_state()).report()
    assert report.source == "parts"
    assert any(note.startswith("Batch norm (1) mixes the examples") for note in report.notes)


def test_a_penalty_is_said() -> None:
    model = mlp()
    monitor = NoiseMonitor(model, every=1)
    for step in range(12):
        model.zero_grad()
        (cross_entropy(model, *batch(step)) + sum(p.square().sum() for p in model.parameters())).backward()
        monitor.step()
    report = monitor.report()
    assert report.source == "parts"
    assert any("does not come through the model's output" in note for note in report.notes)


def test_a_short_batch_now_and_then_is_left_out() -> None:
    for source in ("examples", "parts"):
        model = mlp()
        monitor = NoiseMonitor(model, every=1, source=source)
        for step in range(20):
            model.zero_grad()
            cross_entropy(model, *batch(step, 1 if step % 3 == 0 else M)).backward()
            monitor.step()
        assert [n.step for n in monitor.report().measurements] == [s for s in range(FIRST, 20) if s % 3]


def test_an_odd_step_does_not_end_what_has_worked_before() -> None:
    """A step whose output has no example a row (an auxiliary batch, say) is left out; the ones after it are not."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.odd = nn.Linear(WIDTH, CLASSES), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).T if self.odd else self.layer(x)

    model = Odd()
    monitor = NoiseMonitor(model, every=1, source="parts")
    for step in range(20):
        model.zero_grad()
        model.odd = step == FIRST + 4
        x, y = batch(step)
        output = model(x)
        F.cross_entropy(output.T if model.odd else output, y).backward()
        monitor.step()
    assert [n.step for n in monitor.report().measurements] == [s for s in range(FIRST, 20) if s != FIRST + 4]


def test_frozen_and_thawed_parameters_are_measured_afresh() -> None:
    model = mlp()
    first = next(iter(model.parameters()))
    first.requires_grad_(False)
    monitor = NoiseMonitor(model, every=1)
    for step in range(40):
        first.requires_grad_(step >= 20)
        model.zero_grad()
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
    report = monitor.report()
    assert any("frozen or thawed: measured from step" in note for note in report.notes)
    whole = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert report.measurements[-1].mean_squared == pytest.approx(whole, rel=1e-5)


# --- no answer ---


def test_a_loss_that_compares_examples_is_refused_and_the_training_goes_on() -> None:
    model = nn.Linear(WIDTH, 5)
    monitor = NoiseMonitor(model, every=1)
    for step in range(20):
        z = F.normalize(model(batch(step)[0]))
        loss = (z @ z.T / 0.1).logsumexp(1).mean()
        loss.backward()
        monitor.step(loss)
    assert hooks(model) == 0
    with pytest.raises(UnsupportedTask, match=r"\(a contrastive loss\)") as refused:
        monitor.report()
    assert ". " not in str(refused.value)


def test_two_views_in_two_forward_passes_are_refused_too() -> None:
    model = nn.Linear(WIDTH, 5)
    monitor = NoiseMonitor(model, every=1)

    for step in range(20):
        loss = F.cross_entropy(model(batch(step)[0]) @ model(batch(step + 1)[0]).T, torch.arange(M))
        loss.backward()
        monitor.step(loss)
    with pytest.raises(UnsupportedTask, match="contrastive"):
        monitor.report()


def test_nothing_to_be_measured_is_an_error_of_one_sentence() -> None:
    model = Two()
    monitor = NoiseMonitor(model, every=1)
    for step in range(20):
        first, second = model(batch(step)[0])
        (F.cross_entropy(first, batch(step)[1]) + second.square().mean()).backward()
        monitor.step()
    with pytest.raises(CannotAnswer, match=r"got none.*no single output.*accumulate gradients over two micro-batches"):
        monitor.report()
    assert hooks(model) == 0


def test_a_head_beside_the_output_breaks_nothing() -> None:
    class Sided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.side = nn.Linear(WIDTH, 4), nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.body(x)
            self.beside = self.side(z)
            return self.head(z)

    model = Sided()
    monitor = NoiseMonitor(model, every=1)
    for step in range(12):
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y) + 0.3 * F.cross_entropy(model.beside, y)
        loss.backward()
        monitor.step(loss)
        model.zero_grad()
    with pytest.raises(CannotAnswer, match="does not come through the model's output"):
        monitor.report()


def test_no_measured_steps_yet() -> None:
    with pytest.raises(CannotAnswer, match="expected measured steps, got none in 3"):
        train(mlp(), 3).report()


def test_batches_of_one_say_why() -> None:
    model = mlp()
    monitor = NoiseMonitor(model, every=1)
    for step in range(12):
        cross_entropy(model, *batch(step, 1)).backward()
        monitor.step()
    with pytest.raises(CannotAnswer, match="one example a step"):
        monitor.report()


def test_too_few_measurements_are_not_enough() -> None:
    report = train(mlp(), FIRST + 2).report()
    assert report.scale.outcome == "not_enough"
    assert str(report).startswith("gradient noise scale: not enough yet")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"every": 0}, "every=100"),
        ({"every": 2.5}, "every=100"),
        ({"overhead": 0.0}, "overhead=0.02"),
        ({"proxies": True}, "optimizer"),
        ({"source": "layers"}, "expected a source of"),
        ({"source": "replicas"}, "leave it out"),
    ],
)
def test_wrong_use(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        NoiseMonitor(mlp(), **settings)


def test_models_that_cannot_be_measured() -> None:
    with pytest.raises(UsageError, match="trainable"):
        NoiseMonitor(mlp().requires_grad_(False))
    sharded = mlp()
    vars(next(sharded.parameters()))["_is_sharded"] = True
    with pytest.raises(UnsupportedTask, match="sharded"):
        NoiseMonitor(sharded)
    with pytest.raises(UsageError, match="data-parallel"):
        NoiseMonitor(mlp()).communication_hook()


def test_a_source_that_was_asked_for_and_cannot_be() -> None:
    model = with_state()
    with pytest.raises(UnsupportedTask, match="per-example gradients are not to be had"):
        train(model, source="examples")
    assert hooks(model) == 0
