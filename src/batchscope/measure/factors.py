"""What is one example's gradient made of, and how long is it, without forming it?

A layer that is used at T positions per example (tokens, pixels; 1 for a plain linear layer) contributes to the gradient
of its weight, for example i,

    c_i = sum_t l_it r_it^T            l_it of the weight's rows, r_it of its columns

so that, over all uses u, v of the weight (a layer called twice, a weight that two layers share),

    |c_i|^2 = sum_uv sum_tt' (l_iut . l_ivt') (r_iut . r_ivt')                       the Gram form: T^2 (p + q) products

For T = 1 that is |l_i|^2 |r_i|^2 (Goodfellow 2015, arXiv 1510.01799); for long sequences and narrow layers it is
less work to form c_i for a few examples at a time (T p q products). Left factors of an embedding are one-hot: kept as
row numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

CHUNK = 1 << 22  # numbers of gradients formed at a time: 16 MiB in float32 (a guess)


@dataclass(frozen=True)
class Outer:
    """Contributions sum_t l_t r_t^T. `left` (m, G, T, p), or int64 (m, T) row numbers; `right` (m, G, T, q).

    G are groups of a convolution, whose weights are apart: rows [g p, (g + 1) p) of the weight belong to group g.
    """

    left: torch.Tensor
    right: torch.Tensor
    shape: torch.Size  # of the weight

    @property
    def indexed(self) -> bool:
        return not self.left.is_floating_point()

    @property
    def length(self) -> int:
        """T."""
        return self.right.shape[2]

    def squared_norms(self) -> torch.Tensor:
        """(m,): |c_i|^2."""
        if self.length == 1:
            right = self.right.square().sum((2, 3))
            return right.sum(1) if self.indexed else (self.left.square().sum((2, 3)) * right).sum(1)
        p, q, t = self.left.shape[-1], self.right.shape[-1], self.length
        if self.indexed or t * (p + q) <= p * q:
            return inner(self, self)
        chunk = max(1, CHUNK // (p * q * self.right.shape[1]))
        pairs = zip(self.left.split(chunk), self.right.split(chunk), strict=True)
        return torch.cat([(left.mT @ right).square().sum((1, 2, 3)) for left, right in pairs])

    def formed(self) -> torch.Tensor:
        """(m, *shape): the contributions themselves, for tests and for what has no other way."""
        if not self.indexed:
            return (self.left.mT @ self.right).reshape(len(self.right), *self.shape)
        dense = torch.nn.functional.one_hot(self.left, self.shape[0]).to(self.right.dtype)
        return dense.mT @ self.right[:, 0]

    def total(self, examples: slice) -> torch.Tensor:
        """(*shape): the sum over these examples."""
        right = self.right[examples]
        if self.indexed:
            rows = self.left[examples].reshape(-1)
            return right.new_zeros(self.shape).index_add_(0, rows, right.reshape(-1, right.shape[-1]))
        return torch.einsum("mgtp,mgtq->gpq", self.left[examples], right).reshape(self.shape)


@dataclass(frozen=True)
class Formed:
    """Contributions that are small enough to be formed: (m, *shape of the parameter)."""

    values: torch.Tensor

    def squared_norms(self) -> torch.Tensor:
        """(m,): |c_i|^2."""
        return self.values.flatten(1).square().sum(1)

    def formed(self) -> torch.Tensor:
        return self.values

    def total(self, examples: slice) -> torch.Tensor:
        return self.values[examples].sum(0)


Use = Outer | Formed


def squared_norms(uses: Sequence[Use]) -> torch.Tensor:
    """(m,): squared norm of each example's gradient of one parameter, over all its uses."""
    if len(uses) == 1:
        return uses[0].squared_norms()
    outer = [use for use in uses if isinstance(use, Outer)]
    if len(outer) < len(uses) or len({use.left.shape[1] for use in outer if not use.indexed}) > 1:
        return Formed(torch.stack([use.formed() for use in uses]).sum(0)).squared_norms()
    kinds = [[use for use in outer if use.indexed], [use for use in outer if not use.indexed]]
    together = [_joined(kind) for kind in kinds if kind]
    if len(together) == 1:
        return together[0].squared_norms()
    first, second = together
    return first.squared_norms() + second.squared_norms() + 2 * inner(first, second)


def _joined(uses: Sequence[Outer]) -> Outer:
    """Several uses as one, of all their positions."""
    along = 1 if uses[0].indexed else 2
    left, right = torch.cat([u.left for u in uses], along), torch.cat([u.right for u in uses], 2)
    return Outer(left, right, uses[0].shape)


def inner(a: Outer, b: Outer) -> torch.Tensor:
    """(m,): sum_tt' (l_at . l_bt') (r_at . r_bt')."""
    return (_left_products(a, b) * (a.right @ b.right.mT)).sum((1, 2, 3))


def _left_products(a: Outer, b: Outer) -> torch.Tensor:
    """(m, G, T_a, T_b): l_at . l_bt'; where only one is row numbers, that is `a`."""
    if a.indexed and b.indexed:
        return (a.left[:, None, :, None] == b.left[:, None, None, :]).to(a.right.dtype)
    return _picked(b.left, a.left).mT if a.indexed else a.left @ b.left.mT


def _picked(dense: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(m, 1, T, T'): of each dense row (m, 1, T, p) the entries that (m, T') row numbers name."""
    numbers = rows[:, None, None, :].expand(-1, 1, dense.shape[2], -1)
    return dense.gather(3, numbers)
