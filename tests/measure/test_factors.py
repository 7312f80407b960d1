"""Are squared norms of sums of outer products right, without forming them? Against the same sums, formed in a loop."""

from __future__ import annotations

import itertools

import pytest
import torch

from batchscope.measure import factors
from batchscope.measure.factors import Formed, Outer, Use, inner, squared_norms

M, P, Q = 4, 5, 3  # examples, rows and columns of the weight


def dense(length: int, groups: int = 1, p: int = P, q: int = Q, seed: int = 0) -> Outer:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(M, groups, length, p, generator=generator)
    return Outer(left, torch.randn(M, groups, length, q, generator=generator), torch.Size((groups * p, q)))


def indexed(length: int, seed: int = 1) -> Outer:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, P, (M, length), generator=generator)
    return Outer(rows, torch.randn(M, 1, length, Q, generator=generator), torch.Size((P, Q)))


def formed(seed: int = 2) -> Formed:
    return Formed(torch.randn(M, P, Q, generator=torch.Generator().manual_seed(seed)))


def slowly(use: Use) -> torch.Tensor:
    """(m, *shape): a loop over examples, groups and positions."""
    if isinstance(use, Formed):
        return use.values.double()
    found = torch.zeros(M, *use.shape, dtype=torch.float64)
    _, groups, length, _ = use.right.shape
    for i, g, t in itertools.product(range(M), range(groups), range(length)):
        row = use.right[i, g, t].double()
        if use.indexed:
            found[i, int(use.left[i, t])] += row
        else:
            p = use.left.shape[-1]
            found[i, g * p : (g + 1) * p] += torch.outer(use.left[i, g, t].double(), row)
    return found


CASES = {
    "one position": dense(1),
    "one position, groups": dense(1, groups=3),
    "Gram": dense(2, p=30, q=20),
    "direct": dense(40),
    "groups, Gram": dense(2, groups=3, p=30, q=20),
    "groups, direct": dense(40, groups=3),
    "rows": indexed(6),
    "one row": indexed(1),
    "formed": formed(),
}


@pytest.mark.parametrize("use", CASES.values(), ids=CASES.keys())
def test_one_use(use: Use) -> None:
    expected = slowly(use)
    torch.testing.assert_close(use.formed().double(), expected, rtol=1e-5, atol=1e-5)
    norms = expected.flatten(1).square().sum(1)
    torch.testing.assert_close(use.squared_norms().double(), norms, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squared_norms([use]).double(), norms, rtol=1e-5, atol=1e-5)
    for examples in (slice(0, 2), slice(None), slice(1, 1)):
        torch.testing.assert_close(use.total(examples).double(), expected[examples].sum(0), rtol=1e-5, atol=1e-5)


def test_both_forms_agree() -> None:
    for use in (dense(7), dense(7, groups=2)):
        direct = (use.left.mT @ use.right).square().sum((1, 2, 3))
        torch.testing.assert_close(inner(use, use), direct, rtol=1e-5, atol=1e-5)


def test_the_direct_form_a_few_examples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    use = dense(40, groups=2)
    together = use.squared_norms()
    for numbers in (1, P * Q * 2 * 3):
        monkeypatch.setattr(factors, "CHUNK", numbers)
        torch.testing.assert_close(use.squared_norms(), together)


@pytest.mark.parametrize(
    "uses",
    [
        [dense(2), dense(3, seed=7)],
        [dense(20), dense(30, seed=7), dense(1, seed=8)],
        [dense(2, groups=2), dense(3, groups=2, seed=7)],
        [dense(2, groups=2), Outer(dense(2, p=2 * P).left, dense(2, p=2 * P).right, torch.Size((2 * P, Q)))],
        [indexed(4), indexed(2, seed=7)],
        [indexed(4), dense(2), indexed(1, seed=7), dense(1, seed=8)],
        [dense(2), indexed(4)],
        [formed(), formed(seed=7)],
        [formed(), dense(3)],
        [indexed(3), formed(), dense(3)],
    ],
    ids=["few", "many", "groups", "unlike groups", "rows", "rows and more", "more and rows", "formed", "two", "all"],
)
def test_several_uses_of_one_parameter(uses: list[Use]) -> None:
    expected = torch.stack([slowly(use) for use in uses]).sum(0).flatten(1).square().sum(1)
    torch.testing.assert_close(squared_norms(uses).double(), expected, rtol=1e-5, atol=1e-4)
