"""How long is each example's gradient, in the backward pass that is made anyway? The source `examples`.

A hook on every layer sees its input x and, in the backward pass, the gradient d at its output: what `layers.py` needs.
Example i adds c_i = w_i g_i to the batch's gradient, so that parts_squared = sum_i |c_i|^2 / sum_i w_i^2; w_i = 1 / m,
or its share of the counted tokens.

The formulas rest on things that a model may break: examples along the first dimension, weights that are used through
their layer only, nothing that mixes examples, no loss beside the output. So the first measured step is checked,
parameter by parameter: the contributions of the first half of the batch must add up to that half's gradient, by one
more backward pass from the model's output, and all of them to the batch's. Parameters that fail, or belong to no known
layer, are *uncovered*, and the source says so. One that was not used then is checked when it is first used.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from batchscope.errors import UnsupportedTask
from batchscope.measure.factors import Use, squared_norms
from batchscope.measure.gradients import Counts, OfThisModel, Reading, Source, numbers, shape_of
from batchscope.measure.halves import added, gradient_of_first, one_output
from batchscope.measure.layers import Formula, by_example, formula_of, linear, row_norms

TOLERANCE = 1e-2  # of a half's gradient: rounding of float32 is 1e-6, of bfloat16 4e-3; another formula is off by 1
NEGLIGIBLE = 1e-4  # of the whole gradient: adds 1e-8 to its square. A key's bias has gradient 0 but for rounding


class PerExample(Source):
    """Squared norms of every example's gradient."""

    name = "examples"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.index = {id(p): i for i, p in enumerate(self.parameters)}
        self.layers: list[tuple[nn.Module, Formula]] = []
        self.uncovered: dict[str, str] = {}  # parameter -> why
        self.checked = False
        self._verified: set[int] = set()  # parameters
        self._shared: set[int] = set()  # parameters that are used more than once in a forward pass
        self._uses: dict[tuple[int, int], list[Use]] = {}  # (shared parameter, forward pass) -> all its uses
        self._sums: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # parameter -> contributions of half, and of all
        self._times: dict[tuple[int, int], int] = {}  # (parameter, forward pass) -> uses
        self._norms: dict[int, list[torch.Tensor]] = {}  # parameter -> per forward pass (m,): |c_i|
        self._expected: list[torch.Tensor | None] | None = None
        self._failures: dict[int, str] = {}  # parameter -> why its contributions were not to be had this time
        self._unexpected = ""  # why there is nothing to check against
        self._nested = False
        owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        self._shared |= {i for i, p in enumerate(self.parameters) if owners[id(p)] > 1}
        for module in model.modules():
            self._plan(module)

    def _plan(self, module: nn.Module) -> None:
        """Which formula a layer's own parameters get."""
        owned = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if not owned:
            return
        formula = formula_of(module)
        if formula is None and any(True for _ in module.children()):
            kind = type(module).__name__
            names = [n for n, p in zip(self.names, self.parameters, strict=True) if any(p is q for q in owned)]
            self.uncovered |= dict.fromkeys(names, f"{kind} uses it beside other layers")
            return
        self.layers.append((module, formula or by_example))

    def _hook(self) -> None:
        self._uses, self._norms, self._expected, self._failures = {}, {}, None, {}
        self._sums, self._times = {}, {}
        self._unexpected = "the model's own forward pass, or the way from its output to the loss, was not seen"
        for module, formula in self.layers:
            plain = formula is linear and self.checked and self._alone(module)
            see = self._seeing_plain(module) if plain else self._seeing(formula)
            self._handles.append(module.register_forward_hook(OfThisModel(see)))
        if not self.checked:
            self._handles.append(self.model.register_forward_hook(OfThisModel(self._see_output)))

    def _seeing(self, formula: Formula) -> Callable[[nn.Module, Any, Any], None]:
        def see(module: nn.Module, args: Any, output: Any) -> None:
            if self._nested or not isinstance(output, torch.Tensor) or not output.requires_grad:
                return
            if len(args) != 1 or not isinstance(args[0], torch.Tensor):
                return  # the check finds that something is missing
            x, forward_pass = args[0], len(self.examples)

            def see_gradient(d: torch.Tensor) -> None:
                if not self._nested and self.armed:
                    self._try_to_take(formula, module, x, d.detach(), forward_pass)

            output.register_hook(see_gradient)

        return see

    def _seeing_plain(self, module: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        """For a checked linear layer on (m, p) inputs, with less Python, which is most of the price."""
        usual = self._seeing(linear)
        own = (p if p is not None and p.requires_grad else None for p in (module.weight, module.bias))
        weight, bias = (self.index.get(id(p), -1) for p in own)
        norms = self._norms

        def see(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            x = args[0] if len(args) == 1 else None
            fits = x is not None and x.dim() == 2 and not self._nested
            if not fits or not output.requires_grad or not self.examples or x.shape[0] != self.examples[-1]:
                usual(module, args, output)
                return
            forward_pass = len(self.examples)

            def see_gradient(d: torch.Tensor) -> None:
                if self._nested or not self._handles:
                    return
                if forward_pass != len(self.examples):
                    self._try_to_take(linear, module, x, d.detach(), forward_pass)
                    return
                rows = row_norms(d.detach())
                if weight >= 0:
                    norms.setdefault(weight, []).append(row_norms(x.detach()) * rows)
                if bias >= 0:
                    norms.setdefault(bias, []).append(rows)

            output.register_hook(see_gradient)

        return see

    def _try_to_take(
        self, formula: Formula, module: nn.Module, x: torch.Tensor, d: torch.Tensor, forward_pass: int
    ) -> None:
        """`_take`, in float32 and without ever breaking off somebody's backward pass."""
        narrow = torch.is_autocast_enabled(d.device.type)  # a loop may call `backward` under autocast
        failure = "several forward passes before one backward pass" if forward_pass != len(self.examples) else ""
        self._nested = True  # `by_example` calls the layer again
        try:
            with torch.autocast(d.device.type, enabled=False) if narrow else contextlib.nullcontext():
                self._take(formula, module, x, d, forward_pass)
        except Exception as error:  # the layer is somebody else's: anything may be raised
            failure = f"its layer {type(module).__name__} cannot be taken apart ({error})".splitlines()[0][:300]
        finally:
            self._nested = False
        if failure:
            self._failures |= {self.index[id(p)]: failure for p in module.parameters(recurse=False) if p.requires_grad}

    def _take(self, formula: Formula, module: nn.Module, x: torch.Tensor, d: torch.Tensor, forward_pass: int) -> None:
        """One layer's contributions: their norms at once where nothing else adds to the same parameters."""
        m = self.examples[forward_pass - 1] if forward_pass else 0
        if m == 0 or d.dim() == 0 or x.dim() == 0 or d.shape[0] % m or x.shape[0] % m:
            return  # no examples along the first dimension: the check finds that something is missing
        for parameter, use in formula(module, x, d, m):
            i = self.index[id(parameter)]
            if not self.checked:
                self._add_up(i, use, forward_pass)
            if i in self._shared:
                self._uses.setdefault((i, forward_pass), []).append(use)
            else:
                self._norms.setdefault(i, []).append(use.squared_norms().sqrt_())

    def _add_up(self, i: int, use: Use, forward_pass: int) -> None:
        """For the check: sums of contributions, not the contributions, which would be as large as all activations."""
        self._times[i, forward_pass] = self._times.get((i, forward_pass), 0) + 1
        whole = use.total(slice(None))
        half = use.total(slice(0, self.examples[0] // 2)) if forward_pass == 1 else torch.zeros_like(whole)
        before = self._sums.get(i, (torch.zeros_like(whole), torch.zeros_like(whole)))
        self._sums[i] = before[0] + half, before[1] + whole

    def _alone(self, module: nn.Module) -> bool:
        """Whether nothing else adds to the gradients of this layer's own parameters."""
        return not self._shared or all(
            self.index.get(id(p)) not in self._shared for p in module.parameters(recurse=False)
        )

    def _see_output(self, module: nn.Module, args: Any, output: Any) -> None:
        """The first measured step: what the first half of the examples should add up to."""
        if not self.examples or not torch.is_grad_enabled() or len(self.examples) > 1:
            return
        m = self.examples[0]
        found = one_output(output, m)
        if found is None:
            self._unexpected = "the model has no single output with an example a row"
            return

        edge = get_gradient_edge(found)

        def see(d: torch.Tensor) -> None:
            if self._nested or not self.armed:
                return
            self._nested = True
            try:
                self._expected = added(self._expected, gradient_of_first(m // 2, m, edge, d, self.parameters))
            except UnsupportedTask as error:
                self._unexpected = str(error)
            finally:
                self._nested = False

        found.register_hook(see)

    def _read(self, counts: Counts) -> Reading | None:
        mean = self.mean_squared()
        if not self.checked:
            if self.examples[:1] == [1]:
                self.why_not = "one example a step"
                return None
            if not math.isfinite(float(mean.sum())):  # an overflow: nothing to check by, nothing to measure
                return Reading(self.examples[0] if self.examples else 0, 1.0, math.nan, mean * math.nan, mean)
            known = set(self._shared)
            self._check(NEGLIGIBLE * math.sqrt(float(mean.sum())))
            if self._shared != known and not self.uncovered:  # its norms are not sums of its uses' norms
                self.why_not = "a layer is used several times in a step: measured from the next step on"
                return None
        for (i, _), uses in sorted(self._uses.items(), key=lambda item: item[0]):
            self._norms.setdefault(i, []).append(squared_norms(uses).clamp_min_(0).sqrt_())
        columns = [self._column(i) for i in range(len(self.parameters))]
        m = max((c.shape[0] for c in columns), default=0)
        self.why_not = self._why_nothing(columns, m)
        if self.why_not:
            return None
        norms = self._stacked(columns, m, mean)
        if counts is None:
            return Reading(m, 1.0, float(m), torch.linalg.vector_norm(norms, dim=1).square_().mul_(m), mean)
        return self._counted(norms.square(), numbers(counts, m, least=0), mean)

    def _why_nothing(self, columns: Sequence[torch.Tensor], m: int) -> str:
        """Why this step cannot be told; empty where it can."""
        if self.uncovered:
            return "parameters are not covered"
        if self._failures:
            return next(iter(self._failures.values()))
        if not self._norms.keys() <= self._verified:
            self.checked = False  # the next measured step is
            return "a layer was used for the first time"
        if m < 2:
            return "one example a step"
        as_before = all(c.shape[0] in (0, m) for c in columns)
        return "" if as_before else "a layer was used more often than when it was checked"

    @staticmethod
    def _stacked(columns: Sequence[torch.Tensor], m: int, mean: torch.Tensor) -> torch.Tensor:
        """(P, m); 0 for a parameter that was not used, and no numbers at all where one was used unseen."""
        unused = [i for i, c in enumerate(columns) if not c.shape[0]]
        if not unused:
            return torch.stack(list(columns))
        norms = torch.stack([c if c.shape[0] else mean.new_zeros(m) for c in columns])
        unseen = (mean[unused] > NEGLIGIBLE**2 * mean.sum()).any()
        return torch.where(unseen, math.nan, norms)

    def _column(self, i: int) -> torch.Tensor:
        """|c| of all examples for parameter i; empty where it was not used."""
        found = self._norms.get(i, ())
        return found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0)

    @staticmethod
    def _counted(squares: torch.Tensor, counts: Sequence[float], mean: torch.Tensor) -> Reading:
        """With the loss a mean over tokens, of which example i has counts[i], perhaps none."""
        counted = [n for n in counts if n > 0]
        together, part_size, batch_size = shape_of([n / sum(counted) for n in counted], [1.0] * len(counted))
        return Reading(len(counted), part_size, batch_size, squares.sum(1) / together, mean)

    def _check(self, negligible: float) -> None:
        """Compare the contributions with the gradient of the first half of the first pass, and with `.grad`."""
        self.checked = True
        expected = self._expected or [None] * len(self.parameters)
        for i, (name, whole) in enumerate(zip(self.names, self.gradients(), strict=True)):
            half, everything = self._sums.get(i, (None, None))
            if any(times > 1 for (j, _), times in self._times.items() if j == i):
                self._shared.add(i)
            if name in self.uncovered or (whole is None and half is None):
                continue
            self._verified.add(i)
            if i in self._failures:
                self.uncovered[name] = self._failures[i]
            elif self._expected is None:
                self.uncovered[name] = f"nothing to check it by, as {self._unexpected}"
            elif not (_agree(half, expected[i], negligible) and _agree(everything, whole, negligible)):
                self.uncovered[name] = "its examples' gradients do not add up to the batch's"


def _agree(total: torch.Tensor | None, target: torch.Tensor | None, negligible: float) -> bool:
    """Whether contributions add up to a gradient, within rounding; None is zero."""
    found = torch.zeros(()) if total is None else total
    wanted = torch.zeros_like(found) if target is None else target.detach().to_dense().float()
    off = torch.linalg.vector_norm(wanted if total is None else found - wanted.reshape(found.shape))
    return bool(off <= TOLERANCE * torch.linalg.vector_norm(wanted) + negligible)
