"""Where do the squared norms of a batch's parts come from, without changing the training? Four sources.

    examples       one part an example: norms taken in the ordinary backward pass (`per_example.py`)
    parts          the batch in two: one more backward pass, from the model's output, for the first half (`halves.py`)
    micro-batches  the parts that the loop accumulates anyway: norms of what backward passes add (`accumulated.py`)
    replicas       the parts that data-parallel processes work on: as micro-batches, before they are averaged

A source is *armed* before a step's forward pass and *read* after its last backward pass, when `.grad` holds the
batch's gradient, before clipping; armed, it has hooks in the model, and none otherwise. Let a_i be what part i added to
`.grad`, w_i its share of the units that the loss averages over, sum_i a_i = g. Then the part's own gradient is
g_i = a_i / w_i, and

    parts_squared = sum_i w_i^2 |g_i|^2 / sum_i w_i^2 = sum_i |a_i|^2 / sum_i w_i^2            mean_squared = |g|^2

for each parameter apart; sums over parameters are sums of these. With these weights |G|^2 is unbiased whatever the
covariance of each part (`shape_of`). A loop that never divides by the number of its micro-batches has gradients longer
by that factor in both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from batchscope.errors import CannotAnswer
from batchscope.training.batches import tensors_in

Counts = torch.Tensor | Sequence[float] | None


@dataclass(frozen=True)
class Reading:
    """One measured step: squared norms per parameter, (P,), of `Source.names`; not yet read from the device.

    `part_size` and `batch_size` as in `records.GradientNorms`, not a number where processes could not tell;
    `proxies`: metric -> (parts_squared, mean_squared).
    """

    parts: int
    part_size: float | torch.Tensor
    batch_size: float | torch.Tensor
    parts_squared: torch.Tensor
    mean_squared: torch.Tensor
    proxies: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def shape_of(weights: Sequence[float], examples: Sequence[float]) -> tuple[float, float, float]:
    """(sum_i w_i^2, part_size, batch_size) of parts with these weights and examples.

    With Cov(g_i) = Sigma_i, E|g|^2 = |G|^2 + sum_i w_i^2 tr(Sigma_i), so (|g|^2 - sum_i |a_i|^2) / (1 - sum_i w_i^2)
    has the mean |G|^2: all products of two different parts. Sizes are chosen so that `analysis.noise_scale.draw` is
    that; with Sigma_i = Sigma / m_i they turn the rest into tr(Sigma) of one example.
    """
    together = sum(w * w for w in weights)
    spread = sum(w * w / m for w, m in zip(weights, examples, strict=True))
    return together, together / spread, 1 / spread


class OfThisModel:
    """A hook on a module. A copy of it does nothing, so that a model may be copied and pickled while it is measured."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self.hook = hook

    def __call__(self, *args: Any) -> None:
        self.hook(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return OfThisModel, (nothing,)


def nothing(*args: Any) -> None:
    """What a copied hook does."""


class AtAccumulation:
    """Hooks on the node that adds to a parameter's `.grad`: on what it is given, and on the parameter afterwards.

    A hook on the parameter itself leaves something in it when it is removed, which torch calls at every backward pass
    from then on. The node goes when nobody holds it, and its hooks with it.
    """

    def __init__(
        self,
        parameter: torch.Tensor,
        before: Callable[[torch.Tensor], None] | None = None,
        after: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        self.node: Any = torch.autograd.graph.get_gradient_edge(parameter).node
        self.handles = []
        if before is not None:
            self.handles.append(self.node.register_prehook(partial(_see_given, before)))
        if after is not None:
            look = after
            self.handles.append(self.node.register_hook(lambda _, given: look(parameter)))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.node = None


def _see_given(see: Callable[[torch.Tensor], None], given: Sequence[torch.Tensor | None]) -> None:
    if given[0] is not None:  # a function of the user's may return none
        see(given[0])


class Source(ABC):
    """Hooks that are there while a step is measured."""

    name: str

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.why_not = ""  # the last step showed nothing
        self.lasting = False  # and no other step of this model and loop will
        self.copying = False  # gradients as the backward pass leaves them, for loops that change them before `read`
        self._copies: dict[int, torch.Tensor] = {}
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]  # a tied one once
        self.names = [n for n, _ in trainable]
        self.parameters = [p for _, p in trainable]
        self.examples: list[int] = []  # of each forward pass since armed
        self._handles: list[RemovableHandle | AtAccumulation] = []

    def arm(self) -> None:
        """Hooks in: the next step is measured."""
        self.disarm()
        self.examples, self._copies, self.why_not, self.lasting = [], {}, "", False
        for i, parameter in enumerate(self.parameters):
            if self.copying and parameter.requires_grad:  # it may have been frozen since
                self._handles.append(AtAccumulation(parameter, after=self._copying(i)))
        self._handles.append(self.model.register_forward_pre_hook(OfThisModel(self._see_inputs), with_kwargs=True))
        self._hook()

    def disarm(self) -> None:
        """Hooks out; what was seen is forgotten."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._copies = [], {}

    @property
    def armed(self) -> bool:
        return bool(self._handles)

    def read(self, counts: Counts = None) -> Reading | None:
        """What the step showed, and hooks out; None where it cannot be told (one part, unequal micro-batches).

        `counts`: units of each part (examples of each micro-batch, counted tokens of each example), where they are not
        all equal.
        """
        try:
            return self._read(counts)
        finally:
            self.disarm()

    @abstractmethod
    def _hook(self) -> None: ...

    @abstractmethod
    def _read(self, counts: Counts) -> Reading | None: ...

    def _see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.is_grad_enabled():
            self.examples.append(first_dimension(args, kwargs))

    def _copying(self, index: int) -> Callable[[torch.Tensor], None]:
        def copy(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self._copies[index] = parameter.grad.detach().clone()

        return copy

    def gradients(self) -> list[torch.Tensor | None]:
        """The batch's gradient, parameter by parameter; None for one that was not used."""
        if self.copying:
            return [self._copies.get(i) for i in range(len(self.parameters))]
        return [p.grad if p.requires_grad else None for p in self.parameters]

    def mean_squared(self) -> torch.Tensor:
        """(P,): squared norms of the batch's gradient; 0 for a parameter that was not used."""
        grads = self.gradients()
        used = [entries(g) for g in grads if g is not None]
        if not used:
            raise CannotAnswer(
                "expected gradients after the backward pass, got none: call `step` after `backward` and before "
                "`zero_grad`"
            )
        squares = torch.stack(norms(used)).square()
        if len(used) == len(grads):
            return squares
        where = torch.tensor([i for i, g in enumerate(grads) if g is not None], device=squares.device)
        return squares.new_zeros(len(grads)).index_copy(0, where, squares)


def entries(gradient: torch.Tensor) -> torch.Tensor:
    """Its numbers; of a sparse gradient those that are there."""
    if gradient.is_sparse:
        return gradient.detach().coalesce().values()
    return gradient.detach() if gradient.requires_grad else gradient


def norms(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """|t| of each, summed in float32 at least, as `torch.nn.utils.get_total_norm` takes them."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return list(torch._foreach_norm(list(tensors), 2, torch.float64 if wide else torch.float32))


def first_dimension(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Examples in a model's inputs: the first dimension of the first tensor that has one; 0 where none has."""
    return next((len(t) for t in tensors_in([list(args), dict(kwargs)]) if t.dim() > 0), 0)


def numbers(counts: torch.Tensor | Sequence[float], parts: int, least: float = 1e-9) -> list[float]:
    """The units of each part, each of them at least that. Raises CannotAnswer where there are not as many as parts."""
    found = [float(c) for c in (counts.tolist() if isinstance(counts, torch.Tensor) else counts)]
    if len(found) != parts or not all(c >= least for c in found) or not sum(found):
        raise CannotAnswer(f"expected positive counts of {parts} parts, got {found}: give `counts` one number a part")
    return found
