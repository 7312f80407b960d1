"""Is the recursion of moments exact? Against every permutation of tiny data sets, and against plain SGD in torch."""

import itertools
import math

import numpy as np
import pytest
import torch

from batchscope.tasks import noisy_quadratic as q
from batchscope.tasks import noisy_quadratic_truth as truth

CADENCE, BUDGET = q.TRAIN // 4, 40 * q.TRAIN


def tiny(n: int, d: int = 3) -> tuple[truth.Instance, np.ndarray]:
    """An instance and rows (n, d) that have its exact moments."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, d)) * [1.0, 0.5, 2.0][:d]
    x -= x.mean(0)
    return truth.Instance(np.array([1.0, 0.4, 0.05])[:d], rng.uniform(0.5, 2, d), np.square(x).mean(0), n), x


def plain_losses(instance: truth.Instance, x: np.ndarray, batch_size: int, lr: float, orders) -> list[float]:
    """f(w_t) of SGD over the epochs of `orders`, one row at a time: nothing but the definition."""
    w, losses = instance.start.copy(), []
    losses.append(0.5 * sum(h * wi * wi for h, wi in zip(instance.curvature, w, strict=True)))
    for order in orders:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            gradient = sum((instance.curvature * w + x[n] for n in rows), np.zeros_like(w)) / len(rows)
            w = w - lr * gradient
            losses.append(0.5 * sum(h * wi * wi for h, wi in zip(instance.curvature, w, strict=True)))
    return losses


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_the_expected_loss_is_the_mean_over_all_permutations_of_two_epochs(batch_size):
    instance, x = tiny(4)
    orders = list(itertools.permutations(range(4)))
    runs = [plain_losses(instance, x, batch_size, 0.7, pair) for pair in itertools.product(orders, orders)]
    exact = truth.expected_loss(instance, batch_size, 0.7, len(runs[0]) - 1)
    np.testing.assert_allclose(exact, np.mean(runs, axis=0), rtol=1e-12)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_the_expected_loss_is_the_mean_over_all_permutations_of_five(batch_size):
    instance, x = tiny(5)
    runs = [plain_losses(instance, x, batch_size, 0.7, [o]) for o in itertools.permutations(range(5))]
    exact = truth.expected_loss(instance, batch_size, 0.7, len(runs[0]) - 1)
    np.testing.assert_allclose(exact, np.mean(runs, axis=0), rtol=1e-12)


def test_the_expected_loss_lies_within_the_error_of_many_sampled_permutations():
    instance, x = tiny(10)
    rng = np.random.default_rng(0)
    runs = np.array([plain_losses(instance, x, 3, 0.7, [rng.permutation(10) for _ in range(3)]) for _ in range(3000)])
    exact = truth.expected_loss(instance, 3, 0.7, runs.shape[1] - 1)
    error = runs.std(0, ddof=1) / math.sqrt(len(runs))
    assert error[1:].min() > 0
    assert np.abs(exact - runs.mean(0))[1:].max() <= 4 * error[1:].max()
    assert (np.abs(exact - runs.mean(0))[1:] / error[1:]).max() < 4  # 12 correlated steps: chance below 1 in 1,000


def test_the_full_batch_has_no_noise():
    instance, _ = tiny(10)
    w, losses = instance.start, []
    for _ in range(6):
        losses.append(instance.loss(w))
        w = w - 0.7 * instance.curvature * w
    np.testing.assert_allclose(truth.expected_loss(instance, 10, 0.7, 5), losses, rtol=1e-12)


def test_torch_sgd_on_the_real_task_agrees_at_every_evaluation():
    task, instance, batch_size, lr, seeds = q.task(), truth.built_in(), 100, 0.8, 6  # 100: a ragged last batch of 96
    x, y = task.train
    steps = 4 * math.ceil(q.TRAIN / batch_size)
    losses = np.empty((seeds, steps))
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = task.model()
        optimizer = task.optimizer(model, lr)
        batches = [rows for _ in range(4) for rows in torch.randperm(q.TRAIN).split(batch_size)]
        for step, rows in enumerate(batches):
            optimizer.zero_grad()
            task.batch_loss(model, (x[rows], y[rows])).backward()
            optimizer.step()
            losses[seed, step] = task.batch_loss(model, task.valid).detach()
    exact = truth.expected_loss(instance, batch_size, lr, steps)[1:]
    spread = (losses / exact - 1).std(axis=0, ddof=1)
    error = np.sqrt(np.square(spread).mean() / seeds)
    assert 0 < error < 0.05
    assert (
        np.abs(losses.mean(0) / exact - 1)[40:].max() < 5 * error
    )  # pooled error; the largest of 120 correlated steps


def test_simulated_trials_have_the_exact_mean_loss():
    instance = truth.Instance(np.array([1.0, 0.4, 0.05]), np.ones(3), np.array([1.0, 0.2, 3.0]), 10)
    runs = []
    for seed in range(2000):
        losses = truth._simulated_losses(instance, 3, 0.7, np.random.default_rng(seed))
        runs.append([next(losses) for _ in range(13)])
    exact = truth.expected_loss(instance, 3, 0.7, 12)
    error = np.std(runs, axis=0, ddof=1)[1:] / math.sqrt(len(runs))
    assert (np.abs(exact - np.mean(runs, axis=0))[1:] / error).max() < 4


@pytest.mark.parametrize(("batch_size", "lr"), [(8, 0.2), (32, 0.8), (256, 1.6)])
def test_the_mean_crossing_of_simulated_trials_is_near_the_expected_one(batch_size, lr):
    instance = truth.built_in()
    expected = truth.expected_steps(instance, batch_size, lr, q.GOAL, CADENCE, BUDGET)
    found = [truth.simulate(instance, batch_size, lr, s, q.GOAL, CADENCE, BUDGET) for s in range(12)]
    steps = np.array([f.steps for f in found if f is not None])
    assert len(steps) == 12
    assert expected is not None
    assert abs(steps.mean() / expected - 1) < 0.03 + 4 * steps.std(ddof=1) / expected / math.sqrt(12)


def test_expected_steps_are_read_by_the_trials_own_rule():
    instance = truth.built_in()
    losses = truth.expected_loss(instance, 100, 0.8, 500)
    sizes = ([100] * 40 + [96]) * 13
    ends = np.concatenate([[0], np.cumsum(sizes)])[:501]
    looks = [0, *(int(np.argmax(ends >= k * CADENCE)) for k in range(1, int(ends[-1]) // CADENCE))]
    k = next(k for k in range(1, len(looks) - 2) if all(losses[t] <= q.GOAL for t in looks[k : k + 3]))
    before, at = looks[k - 1], looks[k]
    part = (q.GOAL - losses[before]) / (losses[at] - losses[before])
    examples = ends[before] * (ends[at] / ends[before]) ** part
    found = truth.expected_crossing(instance, 100, 0.8, q.GOAL, CADENCE, BUDGET)
    assert found is not None
    assert found.examples == pytest.approx(examples, rel=1e-12)
    assert found.steps == pytest.approx(before + (at - before) * (examples - ends[before]) / (ends[at] - ends[before]))


def test_runs_that_diverge_or_run_out_of_budget_have_no_expected_steps():
    instance = truth.built_in()
    assert truth.expected_steps(instance, 64, 3.2, q.GOAL, CADENCE, BUDGET) is None
    assert truth.expected_steps(instance, 64, 0.1, q.GOAL, CADENCE, 10 * CADENCE) is None


def test_the_built_in_instance_follows_the_law_over_the_default_batch_sizes():
    instance = truth.built_in()
    sizes, rates = [8, 16, 32, 64, 128, 256, 512, 1024], [q_lr * 0.4 for q_lr in (0.5, 1, 2, 4)]
    table = truth.expected_steps_table(instance, sizes, rates, q.GOAL, CADENCE, BUDGET)
    law = truth.true_law(sizes, table, q.TRAIN)
    assert np.isfinite(table).any(axis=1).all()
    assert 100 < law.s_min < 200
    assert 40 < law.critical_batch_size < 100
    assert np.abs(law.residuals).max() < 0.15
    assert np.all(np.diff(np.nanmin(table, axis=1) * sizes) > 0)  # more work at every larger batch size


def test_a_table_made_from_a_law_gives_that_law_back_with_effective_batch_sizes():
    n, sizes = 1000, [7, 33, 150, 600]
    effective = np.array([n / math.ceil(n / b) for b in sizes])
    steps = 120 * (1 + 60 / effective)
    table = np.column_stack([np.full(4, np.nan), 2 * steps, steps])
    law = truth.true_law(sizes, table, n)
    assert (law.s_min, law.critical_batch_size) == pytest.approx((120, 60), rel=1e-6)
    assert np.abs(law.residuals).max() < 1e-6
    assert truth.true_law(sizes, table, n, indices=[1, 1, 1, 1]).s_min == pytest.approx(240, rel=1e-6)
    with pytest.raises(ValueError, match="three batch sizes"):
        truth.true_law(sizes[:2], table[:2], n)
