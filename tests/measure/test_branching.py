"""Do branches train as a hand-written loop would, and reach the expected losses?"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from branch_models import BASE, WINDOW, asked, checkpoint, in_order, loss
from torch import nn
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)

from batchscope.analysis.branching import final_loss
from batchscope.measure.branching import branches, scaling_rule
from batchscope.records.branching import Branch
from batchscope.tasks import noisy_quadratic as q
from batchscope.tasks.noisy_quadratic_truth import Instance, batch_lengths, expected_loss

# --- the training itself ---


@pytest.mark.parametrize(("kind", "factor"), [(torch.optim.Adam, math.sqrt(2)), (torch.optim.SGD, 2)])
def test_a_branch_is_a_hand_written_loop(kind: Any, factor: float) -> None:
    """The twin trains a copy on whole batches; the branch in micro-batches of the base size."""
    model, optimizer = checkpoint(kind=kind)
    found = asked(model, optimizer, in_order)
    assert [(b.seed, b.k) for b in found.branches] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    for branch in found.branches:
        mine, its = copy.deepcopy((model, optimizer))
        for group in its.param_groups:
            group["lr"] *= {0.0: 0.0, 1.0: 1.0, 2.0: factor}[branch.k]
        for step, batch in enumerate(itertools.islice(in_order(branch.batch_size, branch.seed), len(branch.losses))):
            value = loss(mine, batch)
            assert branch.losses[step] == pytest.approx(float(value.detach()), rel=1e-5)
            its.zero_grad()
            value.backward()
            its.step()
        assert sum(branch.units) == WINDOW
        assert branch.learning_rate == its.param_groups[0]["lr"]


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_accumulation_is_the_whole_batch(micro: int) -> None:
    whole = asked(*checkpoint(kind=torch.optim.SGD), micro_batch_size=1000)
    parts = asked(*checkpoint(kind=torch.optim.SGD), micro_batch_size=micro)
    for a, b in zip(whole.branches, parts.branches, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)
        assert a.units == b.units


class Tagger(nn.Module):
    """A class per token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens).transpose(1, 2)


def test_tokens_weigh_by_their_number() -> None:
    """Ragged sequences: the mean over the counted tokens of the batch, not the mean of the micro-batches' means."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (32, 6), generator=generator)
    lengths = torch.randint(0, 7, (32,), generator=generator)
    labels = torch.where(torch.arange(6) < lengths[:, None], tokens % 5, -100)
    assert (lengths == 0).any()  # a pass in which nothing counts
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ask: dict[str, Any] = {"unit": "tokens", "window": 2 * int(lengths.sum()), "ks": (1, 2), "seeds": (3,)}
    whole = asked(model, optimizer, (tokens, labels), micro_batch_size=100, **ask)
    parts = asked(model, optimizer, (tokens, labels), micro_batch_size=1, **ask)
    ask["count"] = lambda batch: int((batch[-1] >= 0).sum())
    counted = asked(model, optimizer, (tokens, labels), micro_batch_size=100, **ask)
    assert whole.branches == counted.branches
    del ask["count"]
    for a, b in zip(whole.branches, parts.branches, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)
        assert a.units == b.units
        assert sum(a.units) >= 2 * lengths.sum()
    assert whole.unit == "tokens"
    mapped = DataLoader(
        TensorDataset(tokens, labels),
        batch_size=BASE,
        collate_fn=lambda items: {
            "labels": torch.stack([y for _, y in items]),
            "x": torch.stack([x for x, _ in items]),
        },
    )
    by_name = asked(
        model, optimizer, mapped, loss=lambda m, b: F.cross_entropy(m(b["x"]), b["labels"]), micro_batch_size=100, **ask
    )
    assert by_name.branches == counted.branches


def test_gradients_are_clipped_where_the_training_clips() -> None:
    model, optimizer = checkpoint(kind=torch.optim.SGD, lr=1.0)
    moved: list[float] = []
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    def watched(model: nn.Module, batch: Any) -> torch.Tensor:
        moved.append(float((nn.utils.parameters_to_vector(model.parameters()).detach() - before).norm()))
        return loss(model, batch)

    asked(model, optimizer, loss=watched, clip_norm=1e-3, seeds=(0,), ks=(1, 2), rule="sqrt")
    assert moved[:16] == [0.0] * 16  # the checkpoint itself
    assert moved[17] == pytest.approx(1e-3, rel=1e-3)
    assert max(moved[16:32]) <= 0.0151


def test_rules_follow_the_optimiser() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    kinds = {
        torch.optim.AdamW: "sqrt",
        torch.optim.RMSprop: "sqrt",
        torch.optim.Adagrad: "sqrt",
        torch.optim.SGD: "linear",
    }
    for kind, rule in kinds.items():
        assert scaling_rule(kind(weights, lr=0.1)) == rule
    model, optimizer = checkpoint()
    assert [p.learning_rate for p in asked(model, optimizer, rule="linear").points] == [0.01, 0.02]
    assert asked(model, optimizer).rule == "sqrt"


# --- the truth ---


def exact_losses(instance: Instance, batch_size: int, learning_rate: float) -> np.ndarray:
    """E of each batch's loss over one permutation: E f(w_t) + sum Cov(w_t, xb_t), see `noisy_quadratic_truth`."""
    lengths = batch_lengths(instance.train_size, batch_size)
    a, g, found = 1 - learning_rate * instance.curvature, np.zeros_like(instance.curvature), []
    losses = expected_loss(instance, batch_size, learning_rate, len(lengths) - 1)
    for value in losses:
        found.append(value + learning_rate * float(instance.noise_variance @ g) / (instance.train_size - 1))
        g = 1 + a * g
    return np.array(found)


def exact_k_star(finals: dict[float, float], tolerance: float) -> float:
    return max(k for k in finals if all(finals[k] <= finals[j] + tolerance for j in finals if j < k))


def test_losses_and_k_star_are_those_expected() -> None:
    """On the noisy quadratic the expected loss of every branch is known, and with it k*."""
    torch.manual_seed(0)
    model = q.Quadratic()
    rows = q.noise_rows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        optimizer.zero_grad()
        model(rows[torch.randint(0, q.TRAIN, (32,), generator=generator)]).mean().backward()
        optimizer.step()
    found = branches(
        model,
        optimizer,
        (rows,),
        lambda model, batch: model(batch[0]).mean(),
        batch_size=32,
        window=q.TRAIN,
        tolerance=0.005,
        seeds=range(5),
        micro_batch_size=256,
    )
    start = model.w.detach().double().abs().numpy()
    instance = Instance(q.curvature().numpy(), start, q.noise_variance().numpy(), q.TRAIN)
    finals = {}
    for k in (0.5, 1.0, 2.0, 4.0):
        size = int(32 * k)
        steps = exact_losses(instance, size, 0.4 * k)
        exact = Branch(k, 0, size, 0.4 * k, tuple(steps), (float(size),) * len(steps))
        finals[k] = final_loss(exact, q.TRAIN, found.smoothing)
    for point in found.points[:4]:
        own = [final_loss(b, q.TRAIN, found.smoothing) for b in found.branches if b.k == point.k]
        excess = point.excess
        assert point.loss.estimate is not None
        assert excess.estimate is not None
        assert abs(point.loss.estimate - finals[point.k]) < 4 * np.std(own, ddof=1) / math.sqrt(len(own))
        if point.k != 1:
            assert excess.low is not None
            assert excess.high is not None
            assert excess.low <= finals[point.k] - finals[1.0] <= excess.high
            assert excess.high - excess.low < 0.008
    stays = float(instance.loss(start))  # of the whole permutation the batches' mean is exactly f
    assert all(np.mean(b.losses) == pytest.approx(stays, abs=1e-5) for b in found.branches if b.k == 0)
    own = [final_loss(b, q.TRAIN, found.smoothing) for b in found.branches if b.k == 0]
    assert found.learned.estimate is not None
    assert abs(found.learned.estimate - (stays - finals[1.0])) < 4 * np.std(own, ddof=1) / math.sqrt(len(own))
    assert found.points[4].diverged  # 1 - eta h = -2.2 in the steepest direction
    b = found.recovered_up_to
    assert found.outcome == "bracketed"
    assert exact_k_star(finals, 0.005) == 2.0
    assert (b.low, b.estimate, b.high) == (64, 64, 128)
    assert found.steps_saved.estimate == 0.5


def test_divergence_ends_a_branch_and_not_the_answer() -> None:
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e3)
    found = asked(
        model,
        optimizer,
        loss=lambda m, b: m(b[0]).square().mean() * (1 if m.weight.detach().abs().max() < 1e6 else math.inf),
        ks=(0.5, 1),
    )
    assert all(p.diverged and p.recovered == "no" for p in found.points)
    assert all(math.isfinite(x) for b in found.branches for x in b.losses)
    assert "The base itself (k = 1) diverged" in found.notes[-1]
