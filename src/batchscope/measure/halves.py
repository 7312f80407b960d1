"""What is the gradient of one half of a batch, when the loop only ever computes the whole? The source `parts`.

While the backward pass of the batch begins, the gradient d of the loss at the model's output is known, one row (or m
rows' worth) per example. Put to zero for the second half, and sent back through the same graph, it gives what the first
half adds to the gradient; what is left of `.grad` afterwards is the second half's (sums over the backward passes, where
a loop makes several from one forward pass):

    a_1 = (d output / d w)^T (d * [i <= m/2])         a_2 = g - a_1

One backward pass more, no second forward pass, nothing drawn at random, any layer. Halves are the best number of parts
for what they cost: k parts take k - 1 passes, and the variance of |G|^2 falls as k / (k - 1).

Where the loss holds something that does not come through the output (a penalty on the weights), that part has no
examples: the first measured step computes both halves, and what remains, c = g - a_1 - a_2, belongs to both:
g_i = a_i / w_i + c. It is taken to be 0 from then on if it was 0 then. A loss term made of hidden layers (a router's
balance) is taken for the same: its noise is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from batchscope.errors import UnsupportedTask
from batchscope.measure.gradients import Counts, OfThisModel, Reading, Source, entries, norms, numbers, shape_of
from batchscope.measure.proxies import Proxies

REMAINDER = 1e-2  # of the gradient's norm: bfloat16 rounds by 4e-3, and what is missed adds 1e-4 |g|^2 to tr(Sigma)
Gradient = list[torch.Tensor | None]


def one_output(output: Any, m: int) -> torch.Tensor | None:
    """The one tensor of a model's output that has the m examples along its first dimension; None where none has.

    Of a mapping or an object with `logits`, those; of several others none: one may be computed from another.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    candidates = [logits] if isinstance(logits, torch.Tensor) else _tensors(output)
    fitting = [t for t in candidates if t.requires_grad and t.dim() > 0 and m > 0 and len(t) and len(t) % m == 0]
    return fitting[0] if len(fitting) == 1 else None


def _tensors(output: Any) -> list[torch.Tensor]:
    several = output.values() if isinstance(output, Mapping) else output
    values = several if isinstance(output, (Mapping, tuple, list)) else [output]
    return [v for v in values if isinstance(v, torch.Tensor)]


def gradient_of_first(
    k: int, m: int, output: GradientEdge, d: torch.Tensor, parameters: Sequence[torch.Tensor]
) -> Gradient:
    """What the first k of m examples add to each parameter's gradient; called while the backward pass begins.

    Raises UnsupportedTask where the graph allows no second pass.
    """
    return _gradient_of(slice(0, len(d) // m * k), output, d, parameters)


def added(a: Gradient | None, b: Gradient) -> Gradient:
    """Their sum; None is zero."""
    pairs = zip(a, b, strict=True) if a is not None else ((None, y) for y in b)
    return [y if x is None else x if y is None else x + y for x, y in pairs]


def _gradient_of(rows: slice, output: GradientEdge, d: torch.Tensor, parameters: Sequence[torch.Tensor]) -> Gradient:
    try:
        masked = torch.zeros_like(d)
        masked[rows] = d[rows]
        found = torch.autograd.grad(output, list(parameters), masked, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise UnsupportedTask(
            f"a second backward pass from the model's output fails ({str(error).splitlines()[0][:200]}): reentrant "
            "checkpointing and compilation forbid it"
        ) from error
    return [None if g is None else g.detach() for g in found]


class Halves(Source):
    """The two halves of one batch, in one forward and one more backward pass."""

    name = "parts"

    def __init__(self, model: nn.Module, proxies: Proxies | None = None) -> None:
        super().__init__(model)
        self.proxies = proxies
        self.penalised: bool | None = None  # whether something in the loss has no examples; None: not looked at yet
        self._first: Gradient | None = None
        self._second: Gradient | None = None
        self._seen = self._nested = False

    def _hook(self) -> None:
        self._first = self._second = None
        self._handles.append(self.model.register_forward_hook(OfThisModel(self._see_output)))

    def _see_output(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.is_grad_enabled() or not self.examples:
            return
        m = self.examples[-1]
        found = one_output(output, m)
        if found is None:
            self.why_not, self.lasting = "no single output with an example a row", True
        elif m < 2:
            self.why_not = "one example a step"
        else:
            edge = get_gradient_edge(found)  # of the output as it is now: it may yet be changed in place
            found.register_hook(lambda d: self._see_gradient(edge, d, len(d) // m * (m // 2)))

    def _see_gradient(self, output: GradientEdge, d: torch.Tensor, rows: int) -> None:
        """Both halves' contributions, or the first one's, while the backward pass begins."""
        if self._nested or not self.armed or self.lasting:
            return
        self._nested = True  # a hook on the output runs in the nested pass as well
        try:
            self._first = added(self._first, _gradient_of(slice(0, rows), output, d, self.parameters))
            if self.penalised is not False:
                self._second = added(self._second, _gradient_of(slice(rows, None), output, d, self.parameters))
        except UnsupportedTask as error:
            self.why_not, self.lasting = str(error), True
        finally:
            self._nested = False

    def _read(self, counts: Counts) -> Reading | None:
        mean = self.mean_squared()
        self._look_for_other_ways()
        if self._first is None or self.lasting or len(self.examples) != 1:
            self.why_not = self.why_not or f"{len(self.examples)} forward passes in one step, not 1"
            return None
        m = self.examples[0]
        units = numbers(counts, m, least=0) if counts is not None else [1.0] * m
        counted, sizes = [sum(units[: m // 2]), sum(units[m // 2 :])], [float(m // 2), float(m - m // 2)]
        if not all(counted):
            self.why_not = "half a batch without counted units"
            return None
        weights = [n / sum(counted) for n in counted]
        whole = _filled(self.gradients(), self.parameters)
        halves = self._halves(whole, weights)
        pairs = zip(weights, halves, strict=True)
        together, part_size, batch_size = shape_of(weights, sizes)
        squares = torch.stack([w * w / together * torch.stack(norms(half)).square() for w, half in pairs])
        proxies = self.proxies(whole, halves, weights, sizes) if self.proxies is not None else {}
        return Reading(2, part_size, batch_size, squares.sum(0), mean, proxies)

    def _look_for_other_ways(self) -> None:
        """Refuses a parameter with a gradient that does not come from the output: its halves are not to be had."""
        for name, first, whole in zip(self.names, self._first or [], self.gradients(), strict=False):
            if first is None and whole is not None and self.penalised is None and bool(entries(whole).any()):
                self.why_not = f"parameter {name} gets a gradient that does not come through the model's output"
                self.lasting = True
                return

    def _halves(self, whole: list[torch.Tensor], weights: Sequence[float]) -> list[list[torch.Tensor]]:
        """Each half's own gradient g_i, of a mean over the half."""
        first = _filled(self._first, whole)
        second = _filled(self._second, whole) if self._second is not None else torch._foreach_sub(whole, first)
        if self._second is None:
            return [_scaled(first, weights[0]), _scaled(list(second), weights[1])]
        rest = torch._foreach_sub(torch._foreach_sub(whole, first), second)
        if self.penalised is None:
            left, all_of_it = (float(torch.stack(norms(list(g))).norm()) for g in (rest, whole))
            self.penalised = left > REMAINDER * all_of_it if math.isfinite(left) else None  # overflow: look again
        halves = [_scaled(first, weights[0]), _scaled(list(second), weights[1])]
        return [list(torch._foreach_add(half, rest)) for half in halves] if self.penalised else halves


def _filled(gradient: Gradient | None, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    pairs = zip(gradient or [], like, strict=True)
    return [torch.zeros_like(p) if g is None else g.detach().to_dense() for g, p in pairs]


def _scaled(gradient: list[torch.Tensor], weight: float) -> list[torch.Tensor]:
    return list(torch._foreach_div(gradient, weight))
