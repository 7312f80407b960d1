"""Do three lines in somebody's loop give the noise scale, in the time they promise, and leave no trace?"""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import CLOSE, examples, halves, naive
from torch import nn

from batchscope.errors import CannotAnswer, UnsupportedTask, UsageError
from batchscope.measure import readings
from batchscope.measure.monitor import COMPARED, WARM_UP, NoiseMonitor
from batchscope.records import GradientNorms, NoiseReport

WIDTH, CLASSES, M = 4, 3, 8
FIRST = WARM_UP + 1  # steps before the first measured one: those left alone, and the look


def batch(step: int, m: int = M) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of a step: learnable, with noise."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(m, WIDTH, generator=generator)
    return x, (x[:, :CLASSES] + torch.randn(m, CLASSES, generator=generator)).argmax(1)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def with_state() -> nn.Module:
    """Batch norm and dropout: running statistics, and draws at every step."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers)


class Positions(nn.Module):
    """An embedding of arange(T): examples are not to be had, which shows only when it is checked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.positions, self.head = nn.Embedding(WIDTH, 1), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.positions(torch.arange(WIDTH)).squeeze(1))


class Two(nn.Module):
    """Two outputs, one computed from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, CLASSES), nn.Linear(CLASSES, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x), self.b(self.a(x))


def cross_entropy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def hooks(model: nn.Module) -> int:
    """How many hooks there are in a model's modules and parameters."""
    found = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    for parameter in model.parameters():
        found += len(parameter._backward_hooks or ()) + len(parameter._post_accumulate_grad_hooks or ())
    return found


def train(
    model: nn.Module,
    steps: int = 12,
    *,
    pieces: int = 1,
    before: Callable[[int], None] = lambda step: None,
    weights: list[nn.Module] | None = None,
    **settings: Any,
) -> NoiseMonitor:
    """The three lines in a loop; `weights` collects the model before each step."""
    optimizer = sgd(model)
    given: dict[str, Any] = {"every": 1, "optimizer": optimizer} | settings
    monitor = NoiseMonitor(model, **given)
    for step in range(steps):
        before(step)
        optimizer.zero_grad()
        loss = torch.zeros(())
        if weights is not None:
            weights.append(copy.deepcopy(model))
        for x, y in zip(*(t.chunk(pieces) for t in batch(step)), strict=True):
            loss = cross_entropy(model, x, y)
            (loss / pieces).backward()
        monitor.step(loss)
        optimizer.step()
    return monitor


def pairs(found: tuple[GradientNorms, ...]) -> list[tuple[float, float]]:
    return [(n.parts_squared, n.mean_squared) for n in found]


def expected(weights: list[nn.Module], found: tuple[GradientNorms, ...], cut: Any) -> list[Any]:
    """The naive sums at the steps that were measured."""
    totals = [naive(weights[n.step], cross_entropy, cut(*batch(n.step))) for n in found]
    return [pytest.approx((float(p.sum()), float(m.sum())), rel=CLOSE) for p, m in totals]


# --- what it measures ---


@pytest.mark.parametrize(
    ("settings", "cut", "source", "parts"),
    [
        ({}, examples, "examples", M),
        ({"source": "parts"}, halves, "parts", 2),
        ({"pieces": 2}, halves, "micro-batches", 2),
        ({"before_clipping": True}, examples, "examples", M),
    ],
    ids=["examples", "parts", "micro-batches", "copies"],
)
def test_every_measured_step_is_the_naive_one(settings: dict[str, Any], cut: Any, source: str, parts: int) -> None:
    weights: list[nn.Module] = []
    report = train(mlp(), weights=weights, **settings).report()
    assert (report.source, report.parts, report.steps, report.batch_size) == (source, parts, 12, pytest.approx(M))
    assert [n.step for n in report.measurements] == list(range(FIRST, 12))
    assert [n.examples for n in report.measurements] == [M * n.step for n in report.measurements]
    assert pairs(report.measurements) == expected(weights, report.measurements, cut)
    for n in report.measurements:
        x, y = batch(n.step)
        last = slice(M // 2, None) if "pieces" in settings else slice(None)
        loss = cross_entropy(weights[n.step], x[last], y[last]).item()
        assert (n.loss, n.learning_rate) == (pytest.approx(loss), 0.1)


def test_the_report() -> None:
    report = train(mlp(), 60).report()
    assert report.scale.outcome in ("resolved", "at_least")
    assert report.scale.measurements == 60 - FIRST
    assert report.latest.measurements == (60 - FIRST) // 4
    assert set(report.layers) == {"0", "2"}
    assert (report.groups, report.proxies, report.notes, report.overhead) == ({}, {}, (), None)
    assert f"{60 - FIRST} of 60 steps measured, source examples" in str(report)


def test_the_last_measurements_only() -> None:
    monitor = train(mlp(), 60)
    assert monitor.report(last=20).measurements == monitor.report().measurements[-20:]
    assert monitor.report(precision=0.05).scale.precision == 0.05


@pytest.mark.parametrize("every", [1, 2, 5])
def test_every_so_many_steps(every: int) -> None:
    report = train(mlp(), 40, every=every).report()
    steps = [n.step for n in report.measurements]
    assert steps == list(range(FIRST, 40, every))
    assert report.every == every


def test_parameter_groups_and_learning_rates() -> None:
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    monitor = NoiseMonitor(model, every=1, optimizer=optimizer)
    for step in range(16):
        optimizer.zero_grad()
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
        optimizer.step()
        schedule.step()
    report = monitor.report()
    assert set(report.groups) == {"group 0", "group 1"}
    assert report.groups["group 0"].trace == report.layers["0"].trace
    assert [n.learning_rate for n in report.measurements] == [0.5 * 0.5**n.step for n in report.measurements]
    assert all(n.loss is None for n in report.measurements)


def test_examples_as_the_loop_counts_them() -> None:
    model, optimizer = mlp(), sgd(mlp())
    monitor = NoiseMonitor(model, every=1, optimizer=optimizer)
    for step in range(12):
        model.zero_grad()
        loss = cross_entropy(model, *batch(step, 4 + step))
        loss.backward()
        monitor.step(loss.item(), examples=4 + step)
    for n in monitor.report().measurements:
        assert n.examples == sum(4 + s for s in range(n.step))
        assert n.batch_size == 4 + n.step


def test_counted_units() -> None:
    model = mlp()
    monitor = NoiseMonitor(model, every=1)
    counts = torch.arange(M) + 1.0
    for step in range(12):
        model.zero_grad()
        x, y = batch(step)
        (F.cross_entropy(model(x), y, reduction="none") * counts).sum().div(counts.sum()).backward()
        monitor.step(counts=counts)
    for n in monitor.report().measurements:
        assert (n.part_size, n.batch_size) == (1.0, pytest.approx(36**2 / sum(k * k for k in range(1, M + 1))))


def test_proxies() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor = NoiseMonitor(model, every=1, optimizer=optimizer, proxies=True)
    for step in range(20):
        optimizer.zero_grad()
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
        optimizer.step()
    report = monitor.report()
    assert report.source == "parts"
    assert {name: scale.metric for name, scale in report.proxies.items()} == {"sign": "sign", "adam": "adam"}
    assert report.proxies["adam"].measurements == 20 - FIRST


# --- what stands in its way ---


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


# --- clipping, scaling, evaluation ---


def test_clipping_before_the_call() -> None:
    """A framework that calls late: the same measurements, if the gradients are copied."""
    found = []
    for before_clipping in (False, True):
        model = mlp()
        optimizer = sgd(model)
        monitor = NoiseMonitor(model, every=1, before_clipping=before_clipping)
        for step in range(12):
            optimizer.zero_grad()
            cross_entropy(model, *batch(step)).backward()
            if not before_clipping:
                monitor.step()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if before_clipping:
                monitor.step()
            optimizer.step()
        found.append(pairs(monitor.report().measurements))
    assert found[0] == found[1]


def scaled(steps: int, overflows: tuple[int, ...] = ()) -> tuple[NoiseReport, list[nn.Module]]:
    model, weights = mlp(), []
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=5)
    monitor = NoiseMonitor(model, every=1, scaler=scaler)
    for step in range(steps):
        optimizer.zero_grad()
        weights.append(copy.deepcopy(model))
        loss = cross_entropy(model, *batch(step))
        scaler.scale(loss * torch.inf if step in overflows else loss).backward()
        monitor.step(loss)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
    return monitor.report(), weights


def test_the_scale_of_a_half_precision_loss_is_divided_out() -> None:
    report, weights = scaled(14)
    assert pairs(report.measurements) == expected(weights, report.measurements, examples)


@pytest.mark.parametrize("overflows", [(FIRST + 3,), (FIRST, FIRST + 1, FIRST + 4)])
def test_steps_that_overflow_are_dropped_and_counted(overflows: tuple[int, ...]) -> None:
    """Also where the first measured steps do, as with a scale that is still sought."""
    report, weights = scaled(24, overflows)
    assert [n.step for n in report.measurements] == [s for s in range(FIRST, 24) if s not in overflows]
    assert report.scale.discarded == len(overflows)
    assert pairs(report.measurements) == expected(weights, report.measurements, examples)


def test_evaluation_between_and_within_steps() -> None:
    plain, model = pairs(train(mlp()).report().measurements), mlp()

    def evaluate(step: int) -> None:
        model.eval()
        with torch.no_grad():
            model(batch(step, 5)[0])
        model.train()

    assert pairs(train(model, before=evaluate).report().measurements) == plain


# --- what it costs ---


class Clock:
    """A plain step takes a second; one in which the model has hooks a price more."""

    def __init__(self, price: float) -> None:
        self.price, self.seconds, self.extra = price, 0.0, 0.0

    def passes(self, measured: bool) -> None:
        self.seconds += 1.0 + self.price * measured
        self.extra += self.price * measured

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(("price", "every"), [(0.29, 25), (0.01, 1), (1.7, 142), (0.0, 1), (-0.1, 1)])
def test_how_often_it_measures_is_chosen_from_what_it_costs(price: float, every: int) -> None:
    """Under 2 % of the time, the calibration included, as soon as that is worked off; and not much under it."""
    model, clock, steps = mlp(), Clock(price), 300
    monitor = NoiseMonitor(model, clock=clock)
    counted = 1 + COMPARED  # the first and those that were compared
    for step in range(steps):
        clock.passes(hooks(model) > 0)
        model.zero_grad()
        cross_entropy(model, *batch(step % 7)).backward()
        monitor.step()
        if step + 1 >= max(every * counted, WARM_UP + 2 + 2 * COMPARED) and price > 0:
            assert clock.extra / (step + 1) < 0.02
    report = monitor.report()
    assert report.every == every
    assert report.overhead == pytest.approx(max(price, 0.0) / every, rel=1e-6)
    if every * counted < steps:
        assert len(report.measurements) >= steps // every - 1 - (WARM_UP + COMPARED if every == 1 else 0)


class Late(nn.Module):
    """Turns out not to be covered at a late step, when it first uses a layer by its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.late, self.used = nn.Linear(WIDTH, CLASSES), nn.Linear(CLASSES, CLASSES), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.body(x), self.late.weight) + self.late(x[:, :CLASSES]) if self.used else self.body(x)


@pytest.mark.parametrize("late", [FIRST + 2 * COMPARED - 1, FIRST + 2 * COMPARED, 200])
def test_another_source_has_another_price(late: int) -> None:
    """Wherever the source changes, the last compared step included: measured again, and never at every step since."""
    model, clock, steps = Late(), Clock(0.29), 600
    monitor = NoiseMonitor(model, clock=clock)
    for step in range(steps):
        model.used = step >= late
        clock.passes(hooks(model) > 0)
        model.zero_grad()
        cross_entropy(model, *batch(step % 7)).backward()
        monitor.step()
    report = monitor.report()
    assert (report.source, report.every) == ("parts", 25)
    assert clock.extra / steps < 0.02


def test_a_clock_that_stands_still() -> None:
    assert train(mlp(), 40, every=None, clock=lambda: 0.0).report().every == 1


def test_a_step_that_is_not_measured_has_no_hooks() -> None:
    model, seen = mlp(), []
    train(model, 40, every=10, before=lambda step: seen.append(hooks(model)))
    assert [step for step, count in enumerate(seen) if count] == [WARM_UP, FIRST, FIRST + 10, FIRST + 20, FIRST + 30]


# --- what it leaves ---


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [t.clone() for t in [*model.state_dict().values(), *moments, *gradients, torch.get_rng_state()]]


@pytest.mark.parametrize("settings", [{}, {"every": 1}, {"every": 3}, {"source": "parts", "every": 1}], ids=str)
@pytest.mark.parametrize("make", [mlp, with_state, Positions])
@pytest.mark.parametrize("pieces", [1, 2])
def test_training_is_the_same_bit_for_bit(make: Callable[[], nn.Module], settings: dict[str, Any], pieces: int) -> None:
    given: dict[str, Any] = settings | ({"source": "micro-batches"} if pieces == 2 and "source" in settings else {})
    ends = []
    for monitored in (False, True):
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        monitor = NoiseMonitor(model, **given) if monitored else None
        for step in range(26):
            optimizer.zero_grad()
            for x, y in zip(*(t.chunk(pieces) for t in batch(step)), strict=True):
                (cross_entropy(model, x, y) / pieces).backward()
            if monitor is not None:
                monitor.step()
            optimizer.step()
        if monitor is not None:
            assert monitor.report().measurements
            monitor.remove()
            assert hooks(model) == 0
        ends.append(state(model, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_removed_it_does_nothing_more() -> None:
    model = mlp()
    monitor = train(model, 12)
    assert hooks(model) > 0  # the next step would be measured
    monitor.remove()
    assert hooks(model) == 0
    found = monitor.report()
    for step in range(12, 20):
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
        assert hooks(model) == 0
    assert monitor.report().measurements == found.measurements
    assert copy.deepcopy(model)(batch(0)[0]).shape == pickle.loads(pickle.dumps(model))(batch(0)[0]).shape


@pytest.mark.parametrize("at", [WARM_UP, FIRST, FIRST + 3])
@pytest.mark.parametrize("when", ["forward", "backward", "after"])
def test_an_error_within_a_step_leaves_no_hooks(at: int, when: str) -> None:
    model = mlp()

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    def loop(monitor: NoiseMonitor) -> None:
        for step in range(20):
            output = model(batch(step)[0])
            if step == at:
                fail() if when == "forward" else output.register_hook(fail) if when == "backward" else None
            output.square().mean().backward()
            if step == at:
                fail()
            monitor.step()

    def watched() -> None:
        with NoiseMonitor(model, every=1) as monitor:
            loop(monitor)

    with pytest.raises(ZeroDivisionError):
        watched()
    assert hooks(model) == 0


def test_a_step_that_broke_off_does_not_spoil_the_next() -> None:
    """A loop that skips a batch after an error (out of memory, say) goes on being measured."""
    model, weights = mlp(), []
    optimizer = sgd(model)
    monitor = NoiseMonitor(model, every=1)
    for step in range(20):
        optimizer.zero_grad()
        if step == 12:
            model(batch(99)[0])  # and then the backward pass fails
        weights.append(copy.deepcopy(model))
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
        optimizer.step()
    found = monitor.report().measurements
    assert pairs(found) == expected(weights, found, examples)
    assert len(found) >= 20 - FIRST - 1


def test_a_model_may_be_copied_and_pickled_while_it_is_measured() -> None:
    model = mlp()
    monitor = train(model, 12)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in others:
        cross_entropy(other, *batch(3)).backward()
    cross_entropy(model, *batch(12)).backward()
    monitor.step()
    assert len(monitor.report().measurements) == 13 - FIRST


class Ragged(nn.Module):
    """A parameter whose gradient for example i is G + a draw of its own, however many tokens it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(200, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_ragged_counts_leave_the_gradient_unbiased() -> None:
    """Tokens of one example are not independent: its gradient is as noisy with 40 of them as with 2."""
    torch.manual_seed(0)
    model, m = Ragged(), 16
    monitor = NoiseMonitor(model, every=1)
    mean = torch.full((200,), 200**-0.5)  # |G|^2 = 1; tr(Sigma) = 200
    for _ in range(400):
        model.zero_grad()
        counts = torch.distributions.Geometric(0.05).sample((m,)) + 1
        x = mean + torch.randn(m, 200)
        (model(x)[:, 0] * counts).sum().div(counts.sum()).backward()
        monitor.step(counts=counts)
    scale = monitor.report().scale
    low, high = scale.squared_gradient.low, scale.squared_gradient.high
    assert low is not None
    assert high is not None
    assert low < 1 < high
    assert scale.trace.estimate == pytest.approx(200, rel=0.02)


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


def test_a_long_run_is_measured_half_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "MOST", 10)
    monkeypatch.setattr(readings, "TOGETHER", 1)
    report = train(mlp(), 80, every=1).report()
    steps = [m.step for m in report.measurements]
    assert len(steps) <= 10
    assert report.every > 1
    assert len({b - a for a, b in itertools.pairwise(steps)}) <= 2
