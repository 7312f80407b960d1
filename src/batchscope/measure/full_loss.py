"""What is the function whose flatness is measured? The mean loss over a fixed set of examples, as a function of x.

    f(x) = sum_c u_c l_c(x) / sum_c u_c     x (n,): all trainable parameters; l_c, u_c: mean loss and units of chunk c

The examples are the same for everybody who asks: the first ones of one fixed permutation, in its order, in chunks of
CHUNK. Gradient and Hessian are sums over the same chunks, in double precision, so that memory is bounded by the chunk.

The model is in eval mode, dropout off. Batch norm that trains by a batch's statistics does so here, over each chunk,
and its running statistics neither count nor move: f and its derivatives are then one function. (With running
statistics, f would be another function at every point that training did not visit, Keskar's box included.) There the
chunking is part of f, and a last chunk that is not full is left out.

`probe` looks whether f is a function at all: twice the same x must give the same bits.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchscope.errors import CannotAnswer
from batchscope.measure.coupling import batch_norms
from batchscope.task import Batch, Data, Task, data_size
from batchscope.training.batches import FixedBatches, examples_in, mapped, split, units_in
from batchscope.training.seeding import mix, permutation, torch_drawing_from

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
        self.recurrent = device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in self.model.modules())
        self.size = sum(p.numel() for p in self.parameters)
        self.dtype = self.parameters[0].dtype
        count = data_size(data) if examples is None else min(examples, data_size(data))
        if self.normed and count > chunk:
            count -= count % chunk
        indices = permutation(0, -1, data_size(data))[:count].tolist()
        self.examples, self.chunk = count, chunk
        self._batches = FixedBatches(task, data, indices, device, chunk=chunk)
        self._units: list[int] | None = None

    # --- points ---

    def point(self) -> torch.Tensor:
        """(n,) float64: x as the model has it now."""
        return torch.cat([p.detach().flatten().double() for p in self.parameters])

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
        with torch.no_grad():
            return math.fsum(w * float(self._loss(batch)) for w, batch in self.chunks())

    def gradient(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        """(f(x), its gradient (n,) float64)."""
        self.move(x)
        value, total = 0.0, torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for weight, batch in self.chunks():
            loss = self._loss(batch)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            total.add_(self.joined(found), alpha=weight)
            value += weight * float(loss.detach())
        return value, total

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
            loss = self._loss(batch)
            gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
            yield weight, self._through(gradients, next(vectors))

    def along_gradient(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(g, H g), (n,) float64 each: of a batch's own mean loss, at the x that the model has now.

        In parts of a chunk's size; where batch norm sees the whole batch, in one.
        """
        batch = mapped(batch, self._as_double) if self.double else batch
        parts = [batch] if self.normed else split(batch, self.chunk)
        units = [units_in(self.task, part) for part in parts]
        shares = [(n / sum(units), part) for n, part in zip(units, parts, strict=True) if n]
        gradient = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        product = torch.zeros_like(gradient)
        with torch_drawing_from(CHUNK_SEED, self.device), twice_differentiable(self.recurrent):
            if len(shares) > 1:
                for share, part in shares:
                    found = torch.autograd.grad(self._loss(part), self.parameters, allow_unused=True)
                    gradient.add_(self.joined(found), alpha=share)
            for share, part in shares:
                own = torch.autograd.grad(self._loss(part), self.parameters, create_graph=True, allow_unused=True)
                if len(shares) == 1:
                    gradient = self.joined(own)
                product.add_(self._through(own, gradient[None])[0], alpha=share)
        self.tell(examples_in(batch))
        return gradient, product

    def _through(self, gradients: Sequence[torch.Tensor | None], vectors: torch.Tensor) -> torch.Tensor:
        """Products with the Hessian of the loss that these gradients, with their graph, are of."""
        used = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        if not used:  # a loss that is linear in every parameter
            return torch.zeros(vectors.shape, dtype=torch.float64, device=self.device)
        outputs = [g for g in gradients if g is not None and g.requires_grad]
        found = []
        for k, vector in enumerate(vectors):
            parts = self.parts(vector.to(self.dtype))
            keep = k + 1 < len(vectors)
            second = torch.autograd.grad(
                outputs, self.parameters, [parts[i] for i in used], retain_graph=keep, allow_unused=True
            )
            found.append(self.joined(second))
        return torch.stack(found)

    def metrics(self, x: torch.Tensor) -> dict[str, float]:
        """f(x) as "loss", and the task's metrics over the same chunks in the same mode."""
        self.move(x)
        sums: dict[str, float] = {}
        with torch.no_grad():
            for weight, batch in self.chunks():
                for name, value in self._metrics(batch).items():
                    share = weight if name == "loss" else examples_in(batch) / self.examples
                    sums[name] = sums.get(name, 0.0) + share * value
        return sums

    def _metrics(self, batch: Batch) -> dict[str, float]:
        task = self.task
        if task.step is not None:
            values = task.evaluate(self.model, batch) if task.evaluate is not None else {}
            return {name: float(v) for name, v in values.items()} | {"loss": float(task.step(self.model, batch))}
        output = self.model(batch[0])
        found = {"loss": float(task.loss_of(output, batch[1]))}
        return found | {name: float(metric(output, batch[1])) for name, metric in task.metrics.items()}

    # --- chunks ---

    def chunks(self) -> Generator[tuple[float, Batch]]:
        """(w_c, chunk), with w_c = u_c / sum u; chunks in which no unit counts are left out.

        Whoever draws at random draws the same at every x.
        """
        batches = (mapped(b, self._as_double) if self.double else b for b in self._batches)
        if self._units is None:
            self._units = [units_in(self.task, batch) for batch in self._batches]
            if not sum(self._units):
                raise CannotAnswer(f"task {self.task.name!r}: expected examples with units that count, got none")
        total = sum(self._units)
        for c, batch in enumerate(batches):
            if self._units[c]:
                with torch_drawing_from(mix(CHUNK_SEED, c), self.device), twice_differentiable(self.recurrent):
                    yield self._units[c] / total, batch
                self.tell(examples_in(batch))

    @staticmethod
    def _as_double(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    def _loss(self, batch: Batch) -> torch.Tensor:
        return self.task.batch_loss(self.model, batch)


def _as_measured(model: nn.Module) -> nn.Module:
    """In eval mode, but for batch norm that was training: it takes a chunk's statistics, and keeps none."""
    training = {m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training}
    model.eval()
    for module in training:
        module.training, module.track_running_stats = True, False
    return model


@contextlib.contextmanager
def twice_differentiable(recurrent: bool) -> Generator[None]:
    """Inside, kernels without a second derivative are not used: fused attention and, where there are, cuDNN's RNNs."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=not recurrent):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
