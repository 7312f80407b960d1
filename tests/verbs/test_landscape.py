"""Does `landscape` draw what a model has, and say what it does not have?"""

from __future__ import annotations

import pytest
import torch

import batchscope as bs
from batchscope.errors import CannotAnswer, UsageError


def models() -> list[torch.nn.Module]:
    """Two states of a model whose only weight has one dimension."""
    return [bs.load_task("noisy-quadratic").model() for _ in range(2)]


def test_a_model_without_filters_has_lines_only() -> None:
    a, b = models()
    found = bs.landscape("noisy-quadratic", a, b, examples=64)
    assert [line.kind for line in found.lines] == ["straight", "curved"]
    assert found.slices == ()
    assert "no filter-normalised direction" in found.notes[-1]
    with pytest.raises(CannotAnswer, match="no filter-normalised direction"):
        bs.landscape("noisy-quadratic", a, examples=64)


def test_a_number_of_examples_is_needed() -> None:
    with pytest.raises(UsageError, match="a number of examples from 2 up"):
        bs.landscape("noisy-quadratic", *models(), examples=0)
