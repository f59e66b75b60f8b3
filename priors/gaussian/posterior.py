"""Conditioning a low-rank normal law on a linear measurement, in the space of its factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from genprior.operators import Identity, Inpainting, Problem
from genprior.operators.random import Generators, normal
from genprior.priors.gaussian.conditioning import (
    check_density_of_y,
    measurement_noise,
    noise_variance,
    solve_observed,
)
from genprior.priors.gaussian.low_rank import LowRankNormal, precise

ROW_VALUES = 2**23
"""Numbers in flight where rows are taken in chunks: 32 MB in float32."""

PIECE = 16
"""Right-hand sides of one task where each takes an iterative solve."""


class GaussianPosterior:
    """p(x | y) for x = m + F a + r n with a and n standard normal, y = A x + sigma e.

    With n integrated out y has covariance M = sigma^2 I + r^2 A A^T given a, so that

        C = I + F^T A^T M^-1 A F,   a | y ~ N(C^-1 F^T A^T M^-1 (y - A m), C^-1)

    and n follows by Matheron's rule from the simpler prior r n. Never a d x d matrix. Factors of
    C are kept in float64, whatever y is in: k x k is small.

    Source: Rasmussen, Williams 2006, appendix A.3 (Woodbury); Doucet 2010 (Matheron's rule).
    """

    def __init__(self, law: LowRankNormal, problem: Problem, shape: torch.Size) -> None:
        self._law = law
        self._problem = problem
        self._count = problem.y.shape[0]
        self._shape = shape  # (C, H, W)
        self._scale = float(law.residual) ** 2
        self._operator = problem.linear_operator
        self._iterative = self._operator.spectrum(problem.y) is None
        self._found: dict[tuple[str, int, int], Tensor] = {}
        check_density_of_y(problem, self._scale)

    def tasks(self) -> list[Callable[[], object]]:
        """Iterative solves that mean, samples and std wait for, in pieces of about one cost.

        Where the operator has a spectrum there are none. Each is done once, here or on demand.
        """
        if not self._iterative:
            return []
        rows = range(1 if self._shared else self._count)
        directions, pixels = _pieces(self._law.rank), _pieces(self._law.dimension)
        tasks = [partial(self._pulled_factors, row, part) for row in rows for part in directions]
        return [*tasks, *(partial(self._gram_diagonal_of, part) for part in pixels)]

    def _once(self, key: tuple[str, int, int], find: Callable[[], Tensor]) -> Tensor:
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]

    def _image(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self._shape)

    def _pull(self, residual: Tensor, problem: Problem) -> Tensor:
        """A^T M^-1 r for residuals r (R, ...), flat: (R, d)."""
        solved = solve_observed(problem, residual, self._scale)
        return problem.linear_operator.adjoint(solved).flatten(1)

    # ------------------------------------------------------------------ factor space

    @cached_property
    def _shared(self) -> bool:
        """Whether A^T M^-1 A is one matrix for all images."""
        return self._operator.rows is None and noise_variance(self._problem).numel() == 1

    @cached_property
    def _weights(self) -> Tensor | None:
        """The diagonal of A^T M^-1 A, (B or 1, d), where that matrix is diagonal, else None."""
        return self._gram_diagonal if isinstance(self._operator, Identity | Inpainting) else None

    @cached_property
    def _gram_diagonal(self) -> Tensor:
        """The diagonal of A^T M^-1 A, (B or 1, d)."""
        if self._iterative:
            parts = [self._gram_diagonal_of(part) for part in _pieces(self._law.dimension)]
            return torch.cat(parts, 1)
        diagonal = self._operator.gram_diagonal(
            noise_variance(self._problem), scale=self._scale, like=self._problem.y
        )
        return diagonal.expand(-1, *self._shape).flatten(1)

    def _gram_diagonal_of(self, part: range) -> Tensor:
        """Some of its entries, (B or 1, n)."""
        variance, like = noise_variance(self._problem), self._problem.y
        find = partial(self._operator.gram_diagonal_of, part, variance, scale=self._scale)
        return self._once(("pixels", 0, part.start), partial(find, like=like))

    def _weighted_factors(self, row: int) -> Tensor:
        """A^T M^-1 A F of image `row`, as rows (k, d)."""
        if self._weights is not None:
            return self._law.factors * self._weights[min(row, len(self._weights) - 1)]
        if self._law.rank == 0:
            return self._law.factors
        if self._iterative:
            return torch.cat([self._pulled_factors(row, p) for p in _pieces(self._law.rank)])
        step = max(1, ROW_VALUES // self._law.dimension)
        return torch.cat([self._pulled(row, f) for f in self._law.factors.split(step)])

    def _pulled_factors(self, row: int, part: range) -> Tensor:
        """Some of its rows, (n, d)."""
        factors = self._law.factors[part.start : part.stop]
        return self._once(("factors", row, part.start), lambda: self._pulled(row, factors))

    def _pulled(self, row: int, factors: Tensor) -> Tensor:
        problem = self._problem.take(torch.full((len(factors),), row, device=factors.device))
        return self._pull(problem.operator(self._image(factors)), problem)

    @cached_property
    def _cholesky(self) -> Tensor:
        """L with L L^T = C, (B or 1, k, k)."""
        if self._weights is not None:
            grams = self._masked_grams(self._weights)
        else:
            factors = self._law.factors.to(precise(self._problem.y))
            rows = range(1 if self._shared else self._count)
            grams = torch.stack([factors @ self._weighted_factors(i).to(factors).T for i in rows])
        identity = torch.eye(self._law.rank, dtype=grams.dtype, device=grams.device)
        return torch.linalg.cholesky(identity + (grams + grams.mT) / 2)

    def _masked_grams(self, weights: Tensor) -> Tensor:
        """F^T diag(w) F for weights (B or 1, d) that are 0 or one level in each image.

        Over the measured or over the missing pixels, whichever are fewer: all pixels together
        give diag(variances), for the factors are orthogonal.
        """
        factors = self._law.factors.to(precise(weights)).T.contiguous()
        whole = torch.diag(self._law.variances.to(factors))
        grams = []
        support, gram = None, whole
        for row in weights:
            if support is None or not torch.equal(support, row > 0):
                support = row > 0
                seen = 2 * int(support.sum()) <= support.numel()
                part = _gram(factors, (support if seen else ~support).nonzero()[:, 0])
                gram = part if seen else whole - part
            grams.append(gram * row.max().to(gram))
        return torch.stack(grams)

    @cached_property
    def _coefficients(self) -> Tensor:
        """E[a | y], (B, k), float64."""
        start = self._image(self._law.mean).expand(self._count, *self._shape)
        pulled = self._pull(self._problem.residual(start), self._problem)
        right = (pulled @ self._law.factors.T).to(self._cholesky)
        return torch.cholesky_solve(right[..., None], self._cholesky)[..., 0]

    def _from_coefficients(self, coefficients: Tensor) -> Tensor:
        """m + F a for a (R, k): images (R, C, H, W)."""
        return self._image(self._law.mean + coefficients.to(self._law.mean) @ self._law.factors)

    # ------------------------------------------------------------------ the posterior

    @cached_property
    def mean(self) -> Tensor:
        x = self._from_coefficients(self._coefficients)
        pulled = self._pull(self._problem.residual(x), self._problem)
        return x + self._image(self._scale * pulled)

    @cached_property
    def std(self) -> Tensor:
        isotropic = self._scale - self._scale**2 * self._gram_diagonal
        factors = self._law.factors
        # inverting the small factor and multiplying beats solving for d right-hand sides
        identity = torch.eye(self._law.rank).to(self._cholesky)
        inverses = torch.linalg.solve_triangular(self._cholesky, identity, upper=False)
        spreads = []
        for i, inverse in enumerate(inverses.to(factors)):
            if self._weights is not None:
                seen = 1 - self._scale * self._weights[min(i, len(self._weights) - 1)]
                spreads.append(_column_norms(inverse, factors) * seen.square())
            else:
                held = factors - self._scale * self._weighted_factors(i)
                spreads.append(_column_norms(inverse, held))
        variance = isotropic.clamp(min=0) + torch.stack(spreads)
        return self._image(variance.sqrt()).expand(self._count, *self._shape)

    @cached_property
    def log_evidence(self) -> Tensor:
        # the minimum over a of |a|^2 + |y - A m - A F a|^2 in M^-1: a sum of squares, where
        # Woodbury's difference of two large numbers would lose float32's digits
        residual = self._problem.residual(self._from_coefficients(self._coefficients))
        solved = solve_observed(self._problem, residual, self._scale)
        quadratic = (residual * solved).flatten(1).sum(1)
        quadratic = quadratic + self._coefficients.square().sum(1).to(quadratic)
        diagonals = self._cholesky.diagonal(dim1=-2, dim2=-1)
        log_det = self._operator.gram_log_determinant(
            noise_variance(self._problem), scale=self._scale, like=self._problem.y
        )
        log_det = log_det + 2 * diagonals.log().sum(-1).to(log_det)
        count = self._problem.observed_count
        return -0.5 * (quadratic + log_det + count * math.log(2 * math.pi))

    def log_prob(self, x: Tensor) -> Tensor:
        if self._scale == 0:
            raise ValueError("a prior without residual has no density: fit it with a residual > 0")
        likelihood = self._problem.log_likelihood(x)
        return self._law.log_prob(x.flatten(1)) + likelihood - self.log_evidence

    def sample(self, n: int, *, generator: Generators = None) -> Tensor:
        y = self._problem.y
        shape = (self._count, n * self.noise_size)
        noise = normal(shape, generator, dtype=y.dtype, device=y.device)
        rows = torch.arange(self._count, device=y.device).repeat_interleave(n)
        samples = self.push(noise.reshape(self._count * n, -1), rows)
        return samples.reshape(self._count, n, *self._shape)

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers `push` takes for a sample."""
        residual = self._law.dimension + self._problem.y[0].numel()
        return self._law.rank + residual * (self._scale > 0)

    def push(self, noise: Tensor, rows: Tensor) -> Tensor:
        """Turn standard normal noise (R, noise_size) into samples for the images `rows` (R,).

        `rows` must be in ascending order.
        """
        k, d = self._law.rank, self._law.dimension
        images, counts = rows.unique_consecutive(return_counts=True)
        along = noise[:, :k].to(self._cholesky).split(counts.tolist())
        factors = self._cholesky.expand(self._count, k, k)
        drawn = [
            self._coefficients[i]
            + torch.linalg.solve_triangular(factors[i].mT, a.mT, upper=True).mT
            for i, a in zip(images.tolist(), along, strict=True)
        ]
        x = self._from_coefficients(torch.cat(drawn)) if drawn else self._image(noise[:, :d])
        if self._scale == 0:
            return x
        out = []
        step = max(1, ROW_VALUES // d)
        for x_, rows_, noise_ in zip(
            x.split(step), rows.split(step), noise[:, k:].split(step), strict=True
        ):
            problem = self._problem.take(rows_)
            x_ = x_ + self._image(self._law.residual * noise_[:, :d])
            shift = measurement_noise(problem, noise_[:, d:].reshape(problem.y.shape))
            pulled = self._pull(problem.residual(x_) - shift, problem)
            out.append(x_ + self._image(self._scale * pulled))
        return torch.cat(out)


def _pieces(size: int) -> list[range]:
    """Cut 0 ... size for `tasks`."""
    return [range(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]


def _blocks(k: int) -> list[tuple[int, int]]:
    """Cut 0 ... k into four, for products whose other half is zero or known."""
    step = max(1, -(-k // 4))
    return [(start, min(start + step, k)) for start in range(0, k, step)]


def _gram(factors: Tensor, index: Tensor) -> Tensor:
    """F^T F over the rows `index` of F (d, k), its lower half computed and mirrored."""
    k = factors.shape[1]
    gram = factors.new_zeros(k, k)
    for chunk in index.split(1024):  # stays in the cache
        rows = factors[chunk]
        for start, stop in _blocks(k):
            gram[start:stop, :stop] += rows[:, start:stop].T @ rows[:, :stop]
    return gram.tril() + gram.tril(-1).T


def _column_norms(lower: Tensor, rows: Tensor) -> Tensor:
    """Squared norms of the columns of lower @ rows, for a lower triangular matrix."""
    norms = rows.new_zeros(rows.shape[1])
    for start, stop in _blocks(len(lower)):
        norms += (lower[start:stop, :stop] @ rows[:stop]).square().sum(0)
    return norms
