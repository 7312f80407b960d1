"""AdaScale in a trial: against a naive twin step by step, resumed bit for bit, on every kind of task that it takes."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import DIGITS, TOY, Stopped, spec_of
from torch import nn
from torch.optim import lr_scheduler

from batchscope.errors import CannotAnswer
from batchscope.measure.gradients import Source
from batchscope.measure.in_trial import HalvesOfSteps
from batchscope.records import Evaluation, TrialResult
from batchscope.remedies.adascale import AdaScaleControl, AdaScaled
from batchscope.remedies.base import Case, by_name
from batchscope.remedies.gain import gain
from batchscope.task import Batch, Task
from batchscope.tasks import digits, noisy_quadratic
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.control import Controlled
from batchscope.training.loop import Evaluator, train
from batchscope.training.step import make_model, make_step
from toys import CPU, SIZE, examples, mlp, mlp_with_state, sgd, toy


def cosine(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, total_steps)


def adam(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


# --- against a naive twin ---


def naive(task: Task, batches: list[Batch], times: float, theta: float) -> tuple[nn.Module, list[float]]:
    """The paper's algorithm, halves by two more forward passes: the model trained, and the gain of each step."""
    torch.manual_seed(0)
    model = mlp()
    optimizer, shadow = sgd(model, 0.05), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    total = 6 * math.ceil(SIZE / 2)
    schedule = cosine(shadow, total)
    shadow.step()
    trace = squared = progress = 0.0
    r, gains, seen, stepped = 1.0, [], 0, 0
    for t, (x, y) in enumerate(batches):
        gains.append(r)
        for group in optimizer.param_groups:
            group["lr"] = r * shadow.param_groups[0]["lr"]
        if len(x) == 16 and t > 0:  # the first step looks, a short one is not measured
            whole, *halves = (gradient(model, x[rows], y[rows]) for rows in (slice(0, 16), slice(0, 8), slice(8, 16)))
            s = float((sum(h.square().sum() for h in halves) / 2 - whole.square().sum()) / (1 / 8 - 1 / 16))
            m = float(whole.square().sum()) - s / 16
            since = t - seen + (seen == 0)
            a = max(1 - theta**since, since / (t + 1)) if seen else 1.0
            trace, squared, seen = trace + a * (s - trace), squared + a * (m - squared), t
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        progress += r
        while stepped < min(math.floor(progress), total):
            schedule.step()
            stepped += 1
        following = len(batches[t + 1][0]) if t + 1 < len(batches) else 16
        r = gain(trace / 2, squared, times * following / 16) if seen else 1.0
    return model, gains


def gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    return torch.cat([g.flatten() for g in grads]).double()


def own_batches(epochs: int) -> list[Batch]:
    """46 examples in batches of 16: every third is short."""
    x, y = examples(SIZE)
    orders = [torch.randperm(SIZE, generator=torch.Generator().manual_seed(e)) for e in range(epochs)]
    return [(x[rows], y[rows]) for order in orders for rows in order.split(16)]


def made(task: Task, model: nn.Module, lr: float = 0.05, budget: int = 6 * SIZE) -> tuple[Any, AdaScaleControl]:
    """(optimiser, control) of a trial at TOY's batch size."""
    optimizer = task.optimizer(model, lr)
    return optimizer, AdaScaleControl(Controlled(task, model, optimizer, 16, budget, 1), 2, None)


def test_it_is_the_papers_algorithm_step_by_step() -> None:
    task, batches = toy(schedule=cosine), own_batches(6)
    torch.manual_seed(0)
    model = mlp()
    optimizer, control = made(task, model)
    step, gains = make_step(task, model, optimizer, watch=control.complete), []
    for batch in batches:
        gains.append(control.rule.gain)
        step(batch)
        control.stepped(len(batch[0]))
    twin, expected = naive(task, batches, 8, 1 - 8 / 1000)
    assert gains == pytest.approx(expected, rel=1e-4)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert gains[:2] == [1, 1]
    assert max(gains) > 1.5
    assert control.rule.progress == pytest.approx(sum(expected), rel=1e-4)


# --- what a step shows ---


def read(task: Task, batch: Batch, *, micro: int | None = None, steps: int = 2) -> tuple[float, float] | None:
    """What the last of so many steps on the same batch at rate 0 shows."""
    torch.manual_seed(0)
    model = make_model(task, CPU)
    optimizer = task.optimizer(model, 0.0)
    measuring, found = HalvesOfSteps(task, model, optimizer), []
    step = make_step(task, model, optimizer, micro_batch_size=micro, watch=lambda b: found.append(measuring.read(b)))
    for _ in range(steps):
        measuring.arm()
        step(batch)
    assert not measuring.source.armed
    assert measuring.read(batch) is None
    return found[-1]


def test_micro_batches_show_what_halves_do() -> None:
    batch = examples(16)
    halves = read(toy(), batch)
    assert halves is not None
    assert read(toy(), batch, micro=8, steps=1) == pytest.approx(halves, rel=1e-4)
    assert read(toy(), batch, steps=1) is None  # the first step only tells that there are none
    assert read(toy(), examples(15), micro=4, steps=1) is not None  # 4, 4, 4, 3


def test_tokens_count_in_a_half() -> None:
    """Examples of unlike weight: the halves' own means, with their shares of the counted units."""

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, target, ignore_index=-100)

    x, y = examples(16)
    y = torch.where(torch.arange(16) % 5 == 0, -100, y)
    task = toy(loss=loss, count=lambda batch: int((batch[1] != -100).sum()))
    found = read(task, (x, y))
    torch.manual_seed(0)
    model = mlp()
    grads = [torch.autograd.grad(loss(model(x[r]), y[r]), list(model.parameters())) for r in (slice(8), slice(8, 16))]
    first, second = (torch.cat([g.flatten() for g in grad]).double() for grad in grads)
    assert found is not None
    assert found[1] == pytest.approx(float(first @ second), rel=1e-4)  # the product of two different parts


def test_adams_metric() -> None:
    """P = 1 / (sqrt(v) + eps): the second moment after one step at rate 0 is the square of the same gradient."""
    task, (x, y) = toy(optimizer=adam), examples(16)
    found = read(task, (x, y))
    torch.manual_seed(0)
    model = mlp()
    whole, first, second = (gradient(model, x[r], y[r]) for r in (slice(16), slice(8), slice(8, 16)))
    p = 1 / (whole.abs() + 1e-8)
    parts, mean = ((p * first**2).sum() + (p * second**2).sum()) / 2, (p * whole**2).sum()
    spread = float((parts - mean) / (1 / 8 - 1 / 16))
    assert found == pytest.approx((spread, float(mean) - spread / 16), rel=1e-3)
    with pytest.raises(CannotAnswer, match="got micro-batches"):
        read(task, (x, y), micro=8)


def test_an_evaluation_that_takes_gradients_disturbs_nothing() -> None:
    task, batches = toy(), own_batches(2)
    seen = []
    for disturbed in (False, True):
        torch.manual_seed(0)
        model = mlp()
        optimizer, control = made(task, model)
        step = make_step(task, model, optimizer, watch=control.complete)
        for batch in batches:
            step(batch)
            control.stepped(len(batch[0]))
            if disturbed:
                model(batch[0][:3])
                control.looked(0.0)
        seen.append(control.state_dict())
    assert seen[0] == seen[1]


# --- in a trial ---


def run(
    task: Task, remedy: Any, path: Path | None = None, case: Case = TOY, epochs: int = 8
) -> tuple[TrialResult, int]:
    """The trial; with a path, stopped at every second evaluation and resumed. And how often it was."""
    applied, stops = remedy.apply(task, case), 0
    spec = spec_of(applied, case, remedy, budget=epochs * case.train_size, cadence=case.train_size)
    evaluator, kept = Evaluator(applied, CPU), Checkpoint(path, seconds=0) if path is not None else None
    while True:
        seen = 0

        def stop_at_the_third(line: Evaluation) -> None:
            nonlocal seen
            seen += 1
            if seen == 3 and path is not None:
                raise Stopped

        try:
            settings: dict[str, Any] = {"device": CPU, "evaluator": evaluator, "on_evaluation": stop_at_the_third}
            control = remedy.control(applied, case)
            return train(applied, spec, checkpoint=kept, control=control, **settings), stops
        except Stopped:
            stops += 1


@pytest.mark.parametrize("optimizer", [sgd, adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("name", ["AdaScale", "AdaScale + label smoothing + weight averaging"])
def test_it_resumes_bit_for_bit(name: str, optimizer: Any, tmp_path: Path) -> None:
    task = toy(model=mlp_with_state, schedule=cosine, optimizer=optimizer, test=examples(9))
    straight, _ = run(task, by_name(name))
    assert straight.outcome == "not_reached", straight.reason
    again, stops = run(task, by_name(name), tmp_path / "trial.pt")
    assert stops > 2
    assert repr(again.trace) == repr(straight.trace)
    assert again.test == straight.test


def test_its_state_is_plain() -> None:
    """Readable by torch.load(weights_only=True), with micro-batches and with halves; the next one is armed alike."""
    task, batches = toy(schedule=cosine), own_batches(1)
    for micro in (None, 4):
        torch.manual_seed(0)
        model = mlp()
        optimizer, control = made(task, model)
        step = make_step(task, model, optimizer, micro_batch_size=micro, watch=control.complete)
        for batch in batches:
            step(batch)
            control.stepped(len(batch[0]))
        file = io.BytesIO()
        torch.save(control.state_dict(), file)
        file.seek(0)
        _, other = made(task, mlp())
        other.load_state_dict(torch.load(file, weights_only=True))
        assert other.state_dict() == control.state_dict()
        assert other.measuring.source.name == ("parts" if micro is None else "micro-batches")
        assert _armed(other.measuring.source) == _armed(control.measuring.source) is True


def _armed(source: Source) -> bool:
    return source.armed


def test_the_averages_are_the_truth_on_the_noisy_quadratic() -> None:
    """Over trials of 48 steps at S = 16, the batches without replacement: against |G|^2 = |H w|^2 at every step's w."""
    task, case = noisy_quadratic.task(), Case(512, 32, 0.4, noisy_quadratic.TRAIN)
    h, found, expected = noisy_quadratic.curvature(), [], []

    class Watched(AdaScaleControl):
        def complete(self, batch: Batch) -> None:
            self.exact.append(float((h * self.measuring.model.w.detach().double()).square().sum()))
            super().complete(batch)

    def make(made: Controlled) -> AdaScaleControl:
        nonlocal control
        control = Watched(made, case.own_batch_size, None)
        control.exact = []
        return control

    control: Any = None
    for seed in range(4):
        spec = spec_of(task, case, AdaScaled(), budget=6 * case.train_size, cadence=case.train_size, seed=seed)
        assert train(task, spec, device=CPU, control=make).steps == 48
        found.append((control.rule.trace, control.rule.squared_gradient, control.rule.gain))
        squared = sum(control.exact[1:]) / 47  # a mean still: 1 / (1 - theta) is 62 steps
        expected.append((5.0, squared, gain(5.0 / 32, squared, 16)))
    for ours, exact in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        assert sum(ours) == pytest.approx(sum(exact), rel=0.05)


def test_it_trains_digits_better_than_the_same_rate() -> None:
    task, remedy = digits.task(), AdaScaled()
    assert remedy.why_not(task, DIGITS) is None
    result, _ = run(task, remedy, case=DIGITS)
    plain = train(task, spec_of(dataclasses.replace(task, lr=0.1), DIGITS, remedy, 8 * 1024, 1024), device=CPU)
    assert result.outcome == "not_reached", result.reason
    assert result.trace[-1].validation["loss"] < 0.8 * plain.trace[-1].validation["loss"]


# --- who is refused ---


def test_who_is_refused() -> None:
    def reason(remedy: AdaScaled | None = None, case: Case = TOY, **changes: Any) -> str:
        return (remedy or AdaScaled()).why_not(toy(**changes), case) or ""

    assert reason() == ""
    assert reason(optimizer=adam) == ""
    assert reason(model=mlp_with_state) == ""
    assert "got Adagrad" in reason(optimizer=lambda model, lr: torch.optim.Adagrad(model.parameters(), lr=lr))
    assert "positive power" in reason(AdaScaled(power=-1.0))
    assert reason(AdaScaled(power=1.0), optimizer=lambda m, lr: torch.optim.Adagrad(m.parameters(), lr=lr)) == ""
    assert "shard" in reason(shard=True)
    assert "at least 2 examples" in reason(case=Case(1, 1, 0.1, SIZE))

    def twice(model: nn.Module, batch: Batch) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]) + model(batch[0]), batch[1])

    assert "2 forward passes" in reason(loss=None, step=twice, metrics={})

    def compares(model: nn.Module, batch: Batch) -> torch.Tensor:
        out = model(batch[0])
        return F.cross_entropy(out @ out.T, torch.arange(len(out)))

    assert "compares the examples" in reason(loss=None, step=compares, metrics={})


def test_looking_leaves_the_generators_alone() -> None:
    before = torch.get_rng_state()
    AdaScaled().why_not(toy(model=mlp_with_state), TOY)
    assert torch.equal(before, torch.get_rng_state())
