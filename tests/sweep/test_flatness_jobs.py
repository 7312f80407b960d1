"""Are weights read from any file that holds a model's state, and do pictures miss only what cannot be had?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.function import once_differentiable

from batchscope.errors import UsageError
from batchscope.measure.point import Probes
from batchscope.records import to_plain
from batchscope.sweep.flatness_jobs import do_pictures, read_state

from .small_task import task as small_task

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "content",
    [
        {"w": torch.ones(2), "_extra_state": {"calls": 3}},
        {"layer.w": torch.ones(2), "layer._extra_state": 3},
        {"state": torch.ones(2)},
    ],
)
@pytest.mark.parametrize("inside", ["best", "initial", "state_dict", "model", ""])
def test_a_state_is_found(content: dict[str, Any], inside: str, tmp_path: Path) -> None:
    """With what modules keep beside tensors, and whatever parameters are called."""
    path = tmp_path / "a.pt"
    wrapped = {"step": 1, "examples": 2, "state": content} if inside == "best" else content
    torch.save({inside: wrapped} if inside else wrapped, path)
    found = read_state(path, inside if inside in ("best", "initial") else "last")
    assert list(found) == list(content)


@pytest.mark.parametrize("content", [3, {"epoch": 3}, {"state_dict": {"w": 3}}, [torch.ones(2)]])
def test_anything_else_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="expected a state_dict"):
        read_state(tmp_path / "a.pt")


class Square(torch.autograd.Function):
    """x^2, whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def test_lines_are_drawn_without_a_second_derivative(tmp_path: Path) -> None:
    base = small_task()
    task = dataclasses.replace(base, loss=lambda output, target: base.loss_of(Square.apply(output), target))
    paths = [tmp_path / name for name in ("a.pt", "b.pt")]
    for path in paths:
        torch.save(task.model().state_dict(), path)
    weights = [{"path": str(path), "which": "last"} for path in paths]
    details = {"weights": weights, "labels": ["a", "b"], "probes": to_plain(Probes(examples=16))}
    found = do_pictures(task, CPU, details, lambda line: None)
    assert [line["kind"] for line in found["lines"]] == ["straight", "curved", "slice", "slice"]
    assert found["sample_sizes"] == []
    assert "differentiated twice" in found["notes"][0]
