"""What is the function whose flatness is measured? The mean loss over a fixed set of examples, as a function of x.

    f(x) = sum_c u_c l_c(x) / sum_c u_c     x (n,): all trainable parameters; l_c, u_c: mean loss and units of chunk c

The examples are the same for everybody who asks: the first ones of one fixed permutation, in its order, in chunks of
CHUNK. Gradient and Hessian are sums over the same chunks, in double precision, so that memory is bounded by the chunk.

The model is in eval mode, dropout off. Batch norm that trains by a batch's statistics does so here, over each chunk,
and its running statistics neither count nor move: f and its derivatives are then one function. (With running
statistics, f would be another function at every point that training did not visit, Keskar's box included.) There the
chunking is part of f, and a last chunk that is not full is left out.

What a loss draws at random, from torch's, numpy's or Python's global generators, it draws alike at every x. Whether f
is a function at all is what `repeatable.probe` looks at.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchscope.errors import CannotAnswer
from batchscope.measure.coupling import batch_norms
from batchscope.task import Batch, Data, Task, data_size
from batchscope.training.batches import FixedBatches, examples_in, mapped, split, units_in
from batchscope.training.device import is_out_of_memory
from batchscope.training.seeding import drawing_from, mix, permutation, torch_drawing_from

CHUNK = 256  # examples: Keskar's small batch, and small enough for a graph of a graph
CHUNK_SEED = 0  # of what a loss draws at random: the same at every x


class FullLoss:
    """f, its gradient and its Hessian's products, at any x. Leaves the global generators as they were.

    Args:
        model: what is evaluated; its parameters are overwritten. In training mode as the task made it, so that layers
            which the task froze are known.
        data: a part of the task's data; `examples`: how many of it, None: all.
        double: compute in float64 throughout; else in the model's own precision, summed in float64.
        tell: hears the examples of every chunk that is done, so that long passes show progress.

    Raises CannotAnswer, when f is computed, for a loss that torch cannot differentiate as often as asked or not in
    float64, and for a chunk that batch norm cannot normalise.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        data: Data,
        device: torch.device,
        *,
        examples: int | None = None,
        chunk: int = CHUNK,
        double: bool = False,
        tell: Callable[[int], None] = lambda examples: None,
    ) -> None:
        self.task, self.device, self.tell = task, device, tell
        self.normed = batch_norms(model)
        self.model = _as_measured(model.to(device))
        if double:
            self.model.double()
        self.double = double
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        if not self.parameters:
            raise CannotAnswer(f"task {task.name!r}: expected a model with trainable parameters, got none")
        self.recurrent = any(isinstance(m, nn.RNNBase) for m in self.model.modules())
        self.size = sum(p.numel() for p in self.parameters)
        self.data, self.chunk = data, chunk
        self._connected = False  # not seen yet
        self._modes = [(m, m.training) for m in self.model.modules()]
        self._take(data_size(data) if examples is None else min(examples, data_size(data)))

    def on(self, examples: int) -> FullLoss:
        """f over the first so many of the same examples, with the same model."""
        few = copy.copy(self)
        few._take(min(examples, self.examples))
        return few

    def _take(self, count: int) -> None:
        """The examples: the first `count` of one fixed permutation."""
        if self.normed and count > self.chunk:
            count -= count % self.chunk
        self.examples = count
        self._indices = permutation(0, -1, data_size(self.data))[:count]
        self._units: list[int] | None = None
        self._items: FixedBatches | None = None
        if not isinstance(self.data, (tuple, list)):
            self._items = FixedBatches(self.task, self.data, self._indices.tolist(), self.device, chunk=self.chunk)

    # --- points ---

    def point(self) -> torch.Tensor:
        """(n,) float64: x as the model has it now."""
        return torch.cat([p.detach().flatten().double() for p in self.parameters])

    def point_of(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(n,) float64: x of a state_dict, or of trainable parameters by name; CannotAnswer for another model's."""
        shapes = {name: p.shape for name, p in zip(self.names, self.parameters, strict=True)}
        other = [name for name, shape in shapes.items() if name not in state or state[name].shape != shape]
        if other:
            raise CannotAnswer(
                f"task {self.task.name!r}: expected weights of its own model, got others ({other[0]} is missing or of "
                "another shape): give those of the task's model"
            )
        return self.joined([state[name].to(self.device) for name in self.names])

    def move(self, x: torch.Tensor) -> None:
        """Put the model's parameters at x (n,)."""
        with torch.no_grad():
            for p, part in zip(self.parameters, self.parts(x), strict=True):
                p.copy_(part)

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x (n,) as one tensor for each parameter, of its shape."""
        pieces = x.to(self.device).split([p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def joined(self, parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """(n,) float64 of one tensor for each parameter; None counts as 0."""
        given = zip(parts, self.parameters, strict=True)
        filled = [torch.zeros_like(p) if t is None else t.to_dense() if t.is_sparse else t for t, p in given]
        return torch.cat([t.detach().flatten().double() for t in filled])

    # --- f ---

    def value(self, x: torch.Tensor) -> float:
        """f(x); nan or inf as it comes."""
        self.move(x)
        total = 0.0
        with self._grad_if_wanted():
            for weight, batch in self.chunks():
                total += weight * float(self._loss(batch).detach())
        return total

    def gradient(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        """(f(x), its gradient (n,) float64)."""
        self.move(x)
        value, total = 0.0, torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for weight, batch in self.chunks():
            loss, found = self.derived(batch)
            total.add_(self.joined(found), alpha=weight)
            value += weight * loss
        return value, total

    def derived(self, batch: Batch, *, again: bool = False) -> tuple[float, Sequence[torch.Tensor | None]]:
        """(mean loss of one of `chunks`, its gradient for each parameter; None where it is not used).

        `again`: with a graph, to be differentiated once more.
        """
        loss = self._loss(batch)
        if not loss.requires_grad:  # of no parameter
            return float(loss), [None] * len(self.parameters)
        with self._differentiating("once"):
            found = torch.autograd.grad(loss, self.parameters, create_graph=again, allow_unused=True)
        return float(loss.detach()), found

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        """(k, n) float64: H v for each row of `vectors` (k, n), at the x that the model has now."""
        total = torch.zeros(vectors.shape, dtype=torch.float64, device=self.device)
        for weight, found in self.chunk_products(itertools.repeat(vectors)):
            total.add_(found, alpha=weight)
        return total

    def chunk_products(self, vectors: Iterator[torch.Tensor]) -> Iterator[tuple[float, torch.Tensor]]:
        """(w_c, (k, n) products of chunk c's own Hessian), chunk after chunk, with the vectors (k, n) of its turn.

        The gradient's graph is built once for a chunk and used for all its vectors. sum_c w_c H_c = H.
        """
        for weight, batch in self.chunks():
            yield weight, self._through(self.derived(batch, again=True)[1], next(vectors))

    def along_gradient(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(g, H g), (n,) float64 each: of a batch's own mean loss, at the x that the model has now.

        In parts of a chunk's size; where batch norm sees the whole batch, in one, and memory is bounded by the batch.
        """
        parts = [batch] if self.normed or examples_in(batch) <= self.chunk else split(batch, self.chunk)
        units = [units_in(self.task, part) for part in parts]
        shares = [(c, n / sum(units), part) for c, (n, part) in enumerate(zip(units, parts, strict=True)) if n]
        gradient = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        product = torch.zeros_like(gradient)
        if len(shares) > 1:
            for c, share, part in shares:
                with self._measuring(mix(CHUNK_SEED, c)):
                    gradient.add_(self.joined(self.derived(self._own(part))[1]), alpha=share)
        for c, share, part in shares:
            with self._measuring(mix(CHUNK_SEED, c)):
                found = self.derived(self._own(part), again=True)[1]
                if len(shares) == 1:
                    gradient = self.joined(found)
                product.add_(self._through(found, gradient[None])[0], alpha=share)
        self.tell(examples_in(batch))
        return gradient, product

    def _through(self, gradients: Sequence[torch.Tensor | None], vectors: torch.Tensor) -> torch.Tensor:
        """Products with the Hessian of the loss that these gradients, with their graph, are of."""
        used = [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        if not used:  # a loss that is linear in every parameter
            return torch.zeros(vectors.shape, dtype=torch.float64, device=self.device)
        outputs, found = [g for _, g in used], []
        if not self._connected:
            self._check_connected(outputs)
        for k, vector in enumerate(vectors):
            parts = self.parts(vector)
            along = [parts[i].to(g.dtype) for i, g in used]
            keep = k + 1 < len(vectors)
            with self._differentiating("twice"):
                second = torch.autograd.grad(outputs, self.parameters, along, retain_graph=keep, allow_unused=True)
            found.append(self.joined(second))
        return torch.stack(found)

    def _check_connected(self, gradients: Sequence[torch.Tensor]) -> None:
        """Raise CannotAnswer where the gradients' graph ends in a function that is marked @once_differentiable.

        torch reports that from `backward`, but leaves the function's part out of what `autograd.grad` returns.
        """
        waiting, seen = [g.grad_fn for g in gradients], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            if node.name().endswith("::Error"):
                raise CannotAnswer(
                    f"task {self.task.name!r}: expected a loss that can be differentiated twice, got a function marked "
                    "@once_differentiable in it: write its backward in operations that torch can differentiate"
                )
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
        self._connected = True

    def metrics(self, x: torch.Tensor) -> dict[str, float]:
        """f(x) as "loss", and the task's metrics over the same chunks in the same mode; nan or inf as they come."""
        self.move(x)
        sums: dict[str, float] = {}
        counted: dict[str, float] = {}
        with self._grad_if_wanted():
            for weight, batch in self.chunks():
                for name, value in self._metrics(batch).items():
                    share = weight if name == "loss" else examples_in(batch)
                    sums[name] = sums.get(name, 0.0) + share * value
                    counted[name] = counted.get(name, 0.0) + share
        return {name: total if name == "loss" else total / counted[name] for name, total in sums.items()}

    def _metrics(self, batch: Batch) -> dict[str, float]:
        """A chunk's loss, and its metrics; no metric sees the outputs of a loss that is not finite."""
        task = self.task
        if task.step is not None:
            untouched = mapped(batch, torch.clone)
            loss = float(self._loss(batch).detach())  # first: it draws what it draws for `value`
            values = task.evaluate(self.model, untouched) if task.evaluate is not None else {}
            return {name: float(v) for name, v in values.items()} | {"loss": loss}
        with self._explained():
            output = self.model(batch[0])
            loss = float(task.loss_of(output, batch[1]))
        if not math.isfinite(loss):
            return {"loss": loss} | dict.fromkeys(task.metrics, math.nan)
        return {"loss": loss} | {name: float(metric(output, batch[1])) for name, metric in task.metrics.items()}

    # --- chunks ---

    def chunks(self, seed: int = CHUNK_SEED) -> Generator[tuple[float, Batch]]:
        """(w_c, chunk), with w_c = u_c / sum u; chunks in which no unit counts are left out.

        Whoever draws at random draws the same at every x; `seed`: or something else. A chunk is a copy, since a model
        may work on its input in place.
        """
        if self._units is None:
            self._units = [units_in(self.task, batch) for batch in self._read()]
        total = sum(self._units)
        if not total:
            raise CannotAnswer(f"task {self.task.name!r}: expected examples with units that count, got none")
        for c, batch in enumerate(self._read()):
            if self._units[c]:
                with self._measuring(mix(seed, c)):
                    yield self._units[c] / total, self._own(batch, fresh=self._items is None)
                self.tell(examples_in(batch))

    def _read(self) -> Iterator[Batch]:
        """The chunks. Tensors are gathered one chunk at a time: a large data set is not held twice."""
        if self._items is not None:
            yield from self._items
            return
        for part in self._indices.split(self.chunk):
            yield tuple(t[part.to(t.device)].to(self.device) for t in self.data)

    def _own(self, batch: Batch, *, fresh: bool = False) -> Batch:
        """The batch in f's precision, not shared with anybody; `fresh`: it is not now."""

        def own(tensor: torch.Tensor) -> torch.Tensor:
            if self.double and tensor.is_floating_point():
                return tensor.double() if fresh or tensor.dtype != torch.float64 else tensor.clone()
            return tensor if fresh else tensor.clone()

        return mapped(batch, own)

    @contextlib.contextmanager
    def _measuring(self, seed: int) -> Generator[None]:
        """Inside, a chunk is passed through the model: modes, random numbers and kernels are as they have to be."""
        for module, training in self._modes:  # a step of the user's may have changed them
            if module.training != training:
                module.training = training
        card = torch_drawing_from(seed, self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        with drawing_from(seed), card, twice_differentiable(self.recurrent):
            yield

    def _grad_if_wanted(self) -> torch.set_grad_enabled:
        """No graph; but a step of the user's may take derivatives itself."""
        return torch.set_grad_enabled(self.task.step is not None)

    def _loss(self, batch: Batch) -> torch.Tensor:
        with self._explained():
            return self.task.batch_loss(self.model, batch)

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        """What a pass cannot do because of how f is measured, in a sentence."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            reason = _first_line(error)
            if self.normed and "more than 1 value per channel" in reason:
                raise CannotAnswer(
                    f"task {self.task.name!r}: expected chunks of at least 2 examples for batch norm, got 1: measure "
                    "on more examples"
                ) from error
            if self.double and ("dtype" in reason or "Double" in reason):
                raise CannotAnswer(
                    f"task {self.task.name!r}: expected a loss that can be computed in float64, got {reason!r}: make "
                    "its constants in the dtype of the model's output, or measure in float32"
                ) from error
            raise

    @contextlib.contextmanager
    def _differentiating(self, times: str) -> Generator[None]:
        """What torch cannot differentiate so many times, in a sentence."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise CannotAnswer(
                f"task {self.task.name!r}: expected a loss that torch.autograd.grad can differentiate {times}, got "
                f"{_first_line(error)!r}: use another kernel for it in the model"
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _as_measured(model: nn.Module) -> nn.Module:
    """In eval mode, but for batch norm that was training: it takes a chunk's statistics, and keeps none.

    Embeddings give dense gradients, which have derivatives.
    """
    training = {m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training}
    model.eval()
    for module in training:
        module.training, module.track_running_stats = True, False
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = False
    return model


@contextlib.contextmanager
def twice_differentiable(recurrent: bool) -> Generator[None]:
    """Inside, kernels without a second derivative are not used: fused attention and cuDNN's RNNs.

    cuDNN's convolutions are deterministic, and not in TF32.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    exact = torch.backends.cudnn.flags(enabled=not recurrent, deterministic=True, allow_tf32=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), exact:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
