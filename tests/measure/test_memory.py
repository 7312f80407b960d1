"""What does a probe see? In this process: steps that really ran, parts that add up, and errors with a name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchscope.measure.memory import MOST_STEPS, observe, saved_bytes
from toys import CPU, Augmented, mlp, toy


def test_steps_evaluation_and_checkpoint_ran() -> None:
    lines: list[dict] = []
    seen = observe(toy(), 16, CPU, tell=lines.append)
    assert seen.error == ""
    assert 3 <= seen.steps <= MOST_STEPS
    assert [line["phase"] for line in lines if line["phase"] != "evaluation"] == [
        "data",
        *["training"] * (seen.steps + 1),
        "checkpoint",
        "checkpoint",
    ]
    assert sum(line.get("examples", 0) for line in lines) == 16 * seen.steps
    assert min(seen.training_bytes or 0, seen.evaluation_bytes or 0, seen.checkpoint_bytes or 0) > 10_000_000
    assert seen.parts is not None
    weights = 4 * (5 * 8 + 8 + 8 * 3 + 3)
    assert (seen.parts.weights, seen.parts.gradients, seen.parts.optimizer_state) == (2 * weights, weights, weights)
    assert sum(dataclasses.asdict(seen.parts).values()) == seen.training_bytes


def test_saved_bytes_by_hand() -> None:
    """Linear keeps its input, tanh its output, the second linear the same; log-softmax its output; nll the targets."""
    x, y = torch.randn(7, 5), torch.zeros(7, dtype=torch.long)
    task, model = toy(), mlp()
    expected = 4 * 7 * 5 + 4 * 7 * 8 + 4 * 7 * 3 + 8 * 7
    assert saved_bytes(task, model, (x, y)) == pytest.approx(expected, abs=16)  # nll also keeps its total weight


def test_a_step_that_raises_is_a_crash_and_one_without_memory_is_not() -> None:
    def refuse(error: Exception):
        def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            raise error

        return toy(loss=loss)

    crashed = observe(refuse(ValueError("no\nmore")), 8, CPU)
    assert (crashed.error, crashed.reason, crashed.steps) == ("crashed", "ValueError: no", 0)
    full = observe(refuse(torch.OutOfMemoryError("CUDA out of memory")), 8, CPU)
    assert full.error == "out_of_memory"
    host = observe(refuse(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")), 8, CPU)
    assert host.error == "out_of_memory"


def test_out_of_memory_in_the_evaluation_keeps_what_training_told() -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            raise MemoryError
        return F.cross_entropy(output, target)

    seen = observe(toy(loss=loss), 8, CPU)
    assert (seen.error, seen.evaluation_bytes) == ("out_of_memory", None)
    assert seen.steps >= 3
    assert seen.training_bytes is not None


def test_a_datasets_largest_example_is_what_is_trained_on() -> None:
    met: list[torch.Tensor] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                met.append(x.detach().clone())
            return super().forward(x)

    data = Augmented()
    task = toy(train=data, model=lambda: Watching(5, 3))
    assert observe(task, 4, CPU, largest=3).error == ""
    plain = data.x[3]
    assert all(torch.allclose(x, plain.expand_as(x), atol=1.0) for x in met)
