"""How curved is the full loss? Extreme eigenvalues, trace and spectral density of its Hessian H, from products alone.

eigenvalues   Lanczos with full reorthogonalisation. With T the tridiagonal matrix after m products, theta an
              eigenvalue of it and s its eigenvector: |H y - theta y| = beta_m |s_m|, so that an eigenvalue of H lies
              within that *residual* of theta. The largest and smallest are algebraic: a negative one that is larger
              in magnitude is not taken for the largest.
trace         E v'Hv = tr H for v of independent signs (Hutchinson 1990). H = sum_c w_c H_c over chunks, and every
              chunk gets signs of its own: the errors of C chunks then average out, where the same v for all would
              repeat one error C times. Two vectors a chunk or more give the standard error from within chunks.
              Hutch++ (Meyer et al. 2021) takes the trace on the range of H S exactly, the rest as above.
density       stochastic Lanczos quadrature (Ubaru et al. 2017): from a random start v, the eigenvalues of T are the
              nodes, the squared first entries of its eigenvectors the weights, of v'g(H)v for any g.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy import stats

from batchscope.errors import CannotAnswer
from batchscope.measure.full_loss import FullLoss
from batchscope.records import Measured

Product = Callable[[torch.Tensor], torch.Tensor]

STEPS = 60  # most products of an eigenvalue search (a guess; 15 to 40 are usual)
TOLERANCE = 1e-3  # residual over the largest magnitude; the eigenvalue's own error is about its square
BREAKDOWN = 1e-10  # a new direction shorter than this, over the largest magnitude, is none
BLOCK = 8  # directions that are kept, and taken out of the next one, together
ASYMMETRIC = 0.05  # of the largest magnitude: rounding is far below, a part that is missing far above (a guess)
LEAST_DF = 16  # of a trace's standard error: few chunks get more vectors each
LEVEL = 0.95


class Tridiagonal:
    """What Lanczos found: H Q = Q T + beta_m q_(m+1) e_m', T with diagonal `alphas` and off-diagonal `betas`."""

    def __init__(self, start: torch.Tensor) -> None:
        self._blocks: list[torch.Tensor] = []  # (BLOCK, n) each: Q's columns as rows
        self._filled = 0
        self._append(start / torch.linalg.vector_norm(start))
        self.alphas: list[float] = []
        self.betas: list[float] = []  # the last one is beta_m

    def extend(self, product: Product) -> bool:
        """One more product; False where the space is exhausted: T's eigenvalues are then exact.

        Raises CannotAnswer for a product that is not finite, or not a symmetric matrix's: H q_m has the component
        beta_(m-1) along q_(m-1), by symmetry alone.
        """
        w = product(self._row(-1)).clone()
        along = torch.cat([block @ w for block in self._rows()]).tolist()
        if not math.isfinite(sum(along)):
            raise _not_finite()
        if self.betas:
            size = max(float(torch.linalg.vector_norm(w)), *map(abs, self.alphas))
            if abs(along[-2] - self.betas[-1]) > ASYMMETRIC * size:
                raise CannotAnswer(
                    "expected the Hessian's products to be those of a symmetric matrix, got others: a function in the "
                    "loss has a backward that cannot itself be differentiated"
                )
        self.alphas.append(along[-1])
        for _ in range(2):  # once loses orthogonality in the directions that matter
            for block in self._rows():
                w.addmv_(block.T, block @ w, alpha=-1)
        beta = float(torch.linalg.vector_norm(w))
        scale = max(map(abs, (*self.alphas, *self.betas)), default=0.0)
        if beta <= BREAKDOWN * max(scale, 1e-300) or self._filled >= len(w):
            self.betas.append(0.0)
            return False
        self.betas.append(beta)
        self._append(w / beta)
        return True

    def _append(self, q: torch.Tensor) -> None:
        if self._filled % BLOCK == 0:
            self._blocks.append(q.new_empty(BLOCK, len(q)))
        self._blocks[-1][self._filled % BLOCK] = q
        self._filled += 1

    def _row(self, k: int) -> torch.Tensor:
        """(n,): q_k, from 0; -1 is the last."""
        k %= self._filled
        return self._blocks[k // BLOCK][k % BLOCK]

    def _rows(self) -> list[torch.Tensor]:
        """Q', in blocks of rows."""
        last = (self._filled - 1) % BLOCK + 1
        return [*self._blocks[:-1], self._blocks[-1][:last]]

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """(eigenvalues ascending, eigenvectors as columns) of T."""
        off = self.betas[:-1]
        return np.linalg.eigh(np.diag(self.alphas) + np.diag(off, 1) + np.diag(off, -1))

    def end(self, which: int) -> tuple[float, float]:
        """(Ritz value, residual): which = -1 the largest, 0 the smallest."""
        values, vectors = self.ritz()
        return float(values[which]), abs(self.betas[-1] * float(vectors[-1, which]))

    def vector(self, which: int) -> torch.Tensor:
        """(n,) the Ritz vector."""
        _, vectors = self.ritz()
        weights = torch.from_numpy(vectors[:, which].copy()).to(self._blocks[0])
        rows = self._rows()
        shares = weights.split([BLOCK] * (len(rows) - 1) + [len(weights) - BLOCK * (len(rows) - 1)])
        return sum(
            (share @ block[: len(share)] for share, block in zip(shares, rows, strict=True)), rows[0].new_zeros(())
        )


def extremes(
    product: Product,
    start: torch.Tensor,
    *,
    most: int = STEPS,
    tolerance: float = TOLERANCE,
    both: bool = True,
) -> Tridiagonal:
    """Lanczos until the largest (and smallest, `both`) Ritz values' residuals are within tolerance, or `most` products.

    The tolerance is relative to the largest magnitude found.
    """
    found = Tridiagonal(start)
    while found.extend(product) and len(found.alphas) < most:
        largest, smallest = found.end(-1), found.end(0)
        scale = max(abs(largest[0]), abs(smallest[0]))
        residuals = (largest[1], smallest[1]) if both else (largest[1],)
        if len(found.alphas) > 2 and max(residuals) <= tolerance * scale:
            break
    return found


def eigenvalue(found: Tridiagonal, which: int) -> Measured:
    """The largest (-1) or smallest (0) eigenvalue, with its residual to both sides."""
    value, residual = found.end(which)
    text = f"residual norm after {len(found.alphas)} Lanczos products: an eigenvalue lies within"
    return Measured(value, value - residual, value + residual, 1, 0, text)


def eigenvalues(
    loss: FullLoss,
    x: torch.Tensor,
    *,
    seed: int = 0,
    most: int = STEPS,
    tolerance: float = TOLERANCE,
    both: bool = True,
) -> tuple[Measured, Measured]:
    """(largest, smallest) eigenvalue of H(x); without `both`, the search ends when the largest is known."""
    loss.move(x)
    found = extremes(product_of(loss), random_start(loss, seed), most=most, tolerance=tolerance, both=both)
    return eigenvalue(found, -1), eigenvalue(found, 0)


def product_of(loss: FullLoss) -> Product:
    """v -> H v at the x that the model has now."""
    return lambda v: loss.products(v[None])[0]


def random_start(loss: FullLoss, seed: int) -> torch.Tensor:
    """(n,) float64, normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(loss.size, generator=generator, dtype=torch.float64).to(loss.device)


# --- trace ---


def trace(
    loss: FullLoss,
    x: torch.Tensor,
    *,
    probes: int = 2,
    seed: int = 0,
    outside: torch.Tensor | None = None,
    relative_error: float | None = None,
    most: int = 64,
) -> Measured:
    """tr H (Hutchinson), with a 95 % t interval from the standard error.

    Args:
        probes: vectors for each chunk and pass, at least 2.
        outside: (n, r) with orthonormal columns Q: the trace of (I - QQ')H(I - QQ') instead.
        relative_error: pass again over the data until the standard error is so small, up to `most` vectors a chunk.

    Raises CannotAnswer for products that are not finite.
    """
    if probes < 2:
        raise ValueError(f"expected at least 2 vectors for each chunk, got {probes}: one has no standard error")
    loss.move(x)
    chunks = math.ceil(loss.examples / loss.chunk)
    wanted = max(probes, math.ceil(LEAST_DF / chunks) + 1)
    signs = _signs(loss, wanted, seed, outside)
    samples: list[list[float]] = []
    weights: list[float] = []
    while True:
        for c, (weight, vectors, found) in enumerate(_with_vectors(loss, signs)):
            if c == len(samples):
                samples.append([])
                weights.append(weight)
            samples[c] += (vectors * found).sum(1).tolist()
        if not np.isfinite(samples).all():
            raise _not_finite()
        measured, error = _sum_of(weights, samples)
        if relative_error is None or error <= relative_error * abs(measured.estimate or 0.0):
            return measured
        if len(samples[0]) + wanted > most:
            return measured


def hutch_plus_plus(loss: FullLoss, x: torch.Tensor, *, products: int = 12, probes: int = 2, seed: int = 0) -> Measured:
    """tr H by Hutch++: the range of H S, exactly, then `probes` vectors a chunk on the rest.

    `products`: with the whole H; half of them find the range, half are for the trace on it.
    """
    loss.move(x)
    rank = max(1, products // 2)
    generator = torch.Generator().manual_seed(seed)
    sketch = _random_signs(generator, rank, loss)
    image = loss.products(sketch)
    if not bool(image.isfinite().all()):
        raise _not_finite()
    range_of, _ = torch.linalg.qr(image.T)
    inside = float((range_of.T * loss.products(range_of.T.contiguous())).sum())
    rest = trace(loss, x, probes=probes, seed=seed + 1, outside=range_of)
    ends = [inside + end if end is not None else None for end in (rest.estimate, rest.low, rest.high)]
    return Measured(*ends, rest.n, 0, f"{rest.interval}; exact on {rank} directions")


def _signs(loss: FullLoss, count: int, seed: int, outside: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """(count, n) of +-1 for chunk after chunk, always fresh; projected away from the columns of `outside`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        drawn = _random_signs(generator, count, loss)
        yield drawn if outside is None else drawn - (drawn @ outside) @ outside.T


def _not_finite() -> CannotAnswer:
    return CannotAnswer(
        "expected finite products with the Hessian, got nan or inf: the loss is too large there, so measure weights at "
        "which training had not diverged, or in float64"
    )


def _random_signs(generator: torch.Generator, count: int, loss: FullLoss) -> torch.Tensor:
    drawn = torch.randint(0, 2, (count, loss.size), generator=generator, dtype=torch.int8).to(loss.device)
    return drawn.double().mul_(2).sub_(1)


def _with_vectors(
    loss: FullLoss, vectors: Iterator[torch.Tensor]
) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
    """(w_c, vectors, their products) chunk after chunk."""
    used: list[torch.Tensor] = []

    def remembered() -> Iterator[torch.Tensor]:
        for v in vectors:
            used[:] = [v]
            yield v

    for weight, found in loss.chunk_products(remembered()):
        yield weight, used[0], found


def _sum_of(weights: Sequence[float], samples: Sequence[Sequence[float]]) -> tuple[Measured, float]:
    """(sum_c w_c mean of its samples, standard error): variances within chunks add; df by Welch and Satterthwaite."""
    values = np.array(samples)
    count = values.shape[1]
    w = np.array(weights)
    parts = w**2 * values.var(1, ddof=1) / count
    estimate, error = float(w @ values.mean(1)), float(np.sqrt(parts.sum()))
    squares = float((parts**2).sum()) / (count - 1)
    df = float(parts.sum()) ** 2 / squares if squares > 0 else float(len(w) * (count - 1))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, df)) * error
    text = f"t on Rademacher probes, {count} for each of {len(w)} chunks, {df:.3g} df"
    return Measured(estimate, estimate - half, estimate + half, count * len(w), 0, text), error


# --- density ---


def density(
    loss: FullLoss, x: torch.Tensor, *, steps: int = 40, starts: int = 4, seed: int = 0
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
    """(nodes, weights) of each random start; a start's weights sum to 1, as the density's integral does."""
    loss.move(x)
    found = []
    for k in range(starts):
        lanczos = Tridiagonal(random_start(loss, seed + k))
        while lanczos.extend(product_of(loss)) and len(lanczos.alphas) < steps:
            pass
        values, vectors = lanczos.ritz()
        found.append((tuple(map(float, values)), tuple(map(float, np.square(vectors[0])))))
    return tuple(found)
