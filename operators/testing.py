"""Checks that every operator must pass, to be run on one's own class too.

from genprior.operators.testing import check_operator

def test_my_operator():
    check_operator(MyOperator(...))
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators.base import Operator, concrete, fits, per_row
from genprior.operators.linear.base import LinearOperator
from genprior.operators.random import normal, uniform


@dataclass(frozen=True)
class Example:
    """An operator with B images (B, C, H, W) to try it on, float64."""

    operator: Operator
    x: Tensor

    def noise(self, shape: torch.Size, seed: int = 1) -> Tensor:
        """Standard normal noise that depends on `seed` alone."""
        generator = torch.Generator().manual_seed(seed)
        return normal(shape, generator, dtype=self.x.dtype, device=self.x.device)

    @property
    def levels(self) -> tuple[Tensor, Tensor]:
        """A damping and a scale for each image, (B,)."""
        steps = torch.arange(len(self.x), dtype=self.x.dtype, device=self.x.device)
        return 0.1 + 0.1 * steps, 1.5 - 1.0 / (2 + steps)

    @property
    def linear(self) -> LinearOperator:
        if not isinstance(self.operator, LinearOperator):
            raise TypeError(f"{type(self.operator).__name__} is not linear")
        return self.operator

    @property
    def tolerance(self) -> float:
        """Relative error allowed to a solve: closed forms are held to more than iterations."""
        return 1e-5 if self.linear.spectrum(self.linear(self.x)) is None else 1e-8


def check_operator(
    operator: Operator,
    *,
    image_shape: tuple[int, int, int] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Run every check of `CHECKS`, and of `LINEAR_CHECKS` on a linear operator.

    Args:
        operator: Small: dense matrices of A are formed. It is not changed.
        image_shape: (C, H, W) to try; needed where the operator leaves its own open.
        device: Where to run.
    Raises:
        AssertionError: A promise is broken; the message says which and by how much.
    """
    example = make_example(operator, image_shape=image_shape, device=device)
    checks = CHECKS + (LINEAR_CHECKS if isinstance(operator, LinearOperator) else ())
    for check in checks:
        check(example)


def make_example(
    operator: Operator,
    *,
    image_shape: tuple[int, int, int] | None = None,
    device: torch.device | str = "cpu",
) -> Example:
    """Put a copy of `operator` on `device` with images for it."""
    shape = concrete(operator.image_shape) if image_shape is None else image_shape
    generator = torch.Generator().manual_seed(0)
    x = uniform((operator.rows or 3, *shape), generator, dtype=torch.float64, device=device)
    return Example(operator.copy_to(device), x)


def check_shapes(example: Example) -> None:
    """Declared shapes hold, in float32 and float64, and dtype and device follow the input."""
    for x in (example.x, example.x.float()):
        y = example.operator(x)
        assert y.dtype == x.dtype, f"{x.dtype} images gave {y.dtype} measurements"
        assert y.device == x.device, f"images on {x.device} gave measurements on {y.device}"
        declared = example.operator.measurement_shape
        assert fits(y.shape[1:], declared), (
            f"measurements are {tuple(y.shape[1:])}, but {declared} is declared"
        )
        assert len(y) == len(x), f"{len(x)} images gave {len(y)} measurements"
    _close(example.operator(example.x.float()), y, "float32 and float64 measurements", 1e-3)


def check_rows(example: Example) -> None:
    """Row i of a batch is what row i gives alone, and `take` selects, repeats and reorders."""
    operator, x = example.operator, example.x
    y = operator(x)
    for i in range(len(x)):
        index = torch.tensor([i], device=x.device)
        _close(operator.take(index)(x[index]), y[index], f"row {i} alone and in a batch", 1e-10)
    index = torch.tensor([len(x) - 1, 0, 0, len(x) - 1], device=x.device)
    taken = operator.take(index)
    _close(taken(x[index]), y[index], "rows taken and rows of the whole", 1e-10)
    assert taken.rows in (None, len(index)), f"take of {len(index)} rows has rows {taken.rows}"


def check_gradient(example: Example) -> None:
    """The derivative exists and agrees with finite differences along one direction."""
    x = example.x.clone().requires_grad_()
    y = example.operator(x)
    v, step = example.noise(y.shape), 1e-4 * example.noise(x.shape, seed=2)
    (gradient,) = torch.autograd.grad(y, x, v)
    ahead, behind = example.operator(example.x + step), example.operator(example.x - step)
    slope = (v * (ahead - behind) / 2).flatten(1).sum(1)
    _close((gradient * step).flatten(1).sum(1), slope, "derivative and finite difference", 1e-4)


def check_purity(example: Example) -> None:
    """Neither the input, nor the state, nor the global generator changes."""
    operator, x = example.operator, example.x.clone()
    state = {name: value.clone() for name, value in operator.state_dict().items()}
    random_state = torch.random.get_rng_state()
    y = operator(x)
    if isinstance(operator, LinearOperator):
        before = y.clone()
        operator.adjoint(y)
        operator.pinv(y)
        operator.solve_gram(y, 0.1)
        assert torch.equal(before, y), "a measurement was written to"
    assert torch.equal(x, example.x), "the image was written to"
    for name, value in operator.state_dict().items():
        assert torch.equal(state[name], value), f"{name} was written to"
    assert torch.equal(random_state, torch.random.get_rng_state()), "the global generator moved"


def check_saving(example: Example) -> None:
    """The state_dict carries everything, and what was derived from old state is dropped."""
    original, other = example.operator, copy.deepcopy(example.operator)
    y = original(example.x)
    with torch.no_grad():
        for buffer in other.state_dict().values():
            if buffer.is_floating_point():
                buffer.mul_(1.5)
            elif buffer.dtype == torch.bool:
                buffer.logical_not_()
        other(example.x)
        if isinstance(other, LinearOperator):
            other.solve_gram(y, 0.1)
    other.load_state_dict(original.state_dict())
    _close(other(example.x), y, "measurements before saving and after loading", 1e-12)
    if isinstance(original, LinearOperator) and isinstance(other, LinearOperator):
        solved = original.solve_gram(y, 0.1)
        _close(
            other.solve_gram(y, 0.1), solved, "solves before saving and after loading", _solved(y)
        )


def check_adjoint(example: Example) -> None:
    """A is linear, <A x, v> = <x, A^T v>, and A^T ignores what is not observed."""
    operator, x = example.linear, example.x
    other = example.noise(x.shape)
    y = operator(x)
    _close(operator(2 * x - other), 2 * y - operator(other), "A(2 x - x') and 2 A x - A x'", 1e-10)
    v = example.noise(y.shape, seed=2)
    adjoint = operator.adjoint(v)
    left, right = (y * v).flatten(1).sum(1), (x * adjoint).flatten(1).sum(1)
    size = (y.flatten(1).norm(dim=1) * v.flatten(1).norm(dim=1)).max()
    _close(left / size, right / size, "<A x, v> and <x, A^T v>", 1e-10)
    if operator.observed is not None:
        spoilt = torch.where(operator.observed, v, torch.full_like(v, torch.nan))
        _close(operator.adjoint(spoilt), adjoint, "A^T of y with NaN where not observed", 1e-12)


def check_pinv(example: Example) -> None:
    """A A^+ A = A, and A^+ A is the orthogonal projection onto the range of A^T."""
    operator, x = example.linear, example.x
    tolerance = example.tolerance
    y = operator(x)
    projected = operator.pinv(y)
    _close(operator(projected), y, "A A^+ A x and A x", tolerance)
    rest = x - projected
    # The norms of x, A^+ A x and the rest must obey Pythagoras.
    inner = (rest * projected).flatten(1).sum(1) / x.flatten(1).square().sum(1)
    _close(inner, torch.zeros_like(inner), "<x - A^+ A x, A^+ A x> and 0", 10 * tolerance)


def check_solve_gram(example: Example) -> None:
    """`solve_gram`, `gram_diagonal` and `gram_log_determinant` agree with dense matrices."""
    operator, (damping, scale) = example.linear, example.levels
    y = operator(example.x)
    a = operator.dense_matrix(y).expand(len(y), -1, -1)
    eye = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    gram = scale[:, None, None] * a @ a.mT + damping[:, None, None] * eye
    v = example.noise(y.shape)
    tolerance = example.tolerance
    dense = torch.linalg.solve(gram, v.flatten(1)).view(v.shape)
    _close(operator.solve_gram(v, damping, scale=scale), dense, "solve_gram and dense", tolerance)
    found = operator.gram_diagonal(damping, scale=scale, like=y)
    dense = (a * torch.linalg.solve(gram, a)).sum(1).view(example.x.shape)
    _close(found, dense, "gram_diagonal and dense", tolerance)
    found = operator.gram_log_determinant(damping, scale=scale, like=y)
    seen = operator.keep_observed(torch.ones_like(v)).flatten(1) > 0
    dense = torch.stack([g[s][:, s].logdet() for g, s in zip(gram, seen, strict=True)])
    _close(found, dense, "gram_log_determinant and dense", 1e-8)


def check_solve_rows(example: Example) -> None:
    """Row i of a solve with a damping for each image is what row i gives alone."""
    operator, (damping, scale) = example.linear, example.levels
    v = example.noise(operator(example.x).shape)
    together = operator.solve_gram(v, damping, scale=scale)
    for i in range(len(v)):
        index = torch.tensor([i], device=v.device)
        alone = operator.take(index).solve_gram(v[index], float(damping[i]), scale=scale[index])
        what = f"solve of row {i} alone and in a batch"
        _close(alone, together[index], what, _solved(v))


def check_svd(example: Example) -> None:
    """A = U diag(s) V^*, with isometries, where the operator has a decomposition."""
    operator, x = example.linear, example.x
    y = operator(x)
    svd = operator.svd(y)
    if svd is None:
        return
    c = svd.vt(x)
    s = svd.singular_values.expand_as(c.real if c.is_complex() else c)
    _close(svd.u(s * c), y, "U s V^* x and A x", 1e-8)
    _close(svd.u(svd.ut(y)), y, "U U^* y and y", 1e-10)
    projected = operator.pinv(y)
    _close(svd.v(c), projected, "V V^* x and A^+ A x", 1e-8)
    norms = c.abs().square().flatten(1).sum(1)
    _close(norms, projected.square().flatten(1).sum(1), "|V^* x|^2 and |A^+ A x|^2", 1e-8)
    squares = s.square().flatten(1).sum(1)
    frobenius = operator.dense_matrix(y).square().sum((-2, -1)).expand_as(squares)
    _close(squares, frobenius, "the sum of s^2 and |A|_F^2", 1e-8)


def check_single_precision(example: Example) -> None:
    """In float32 everything stays float32, through the solve of a posterior's mean too.

    E[x | y] = m + s^2 A^T (s^2 A A^T + sigma^2 I)^-1 (y - A m),   x ~ N(m, s^2 I)
    """
    operator, (damping, scale) = example.linear, example.levels
    y = operator(example.x)

    def mean(y: Tensor) -> Tensor:
        m = torch.full_like(example.x, 0.5).to(y)
        u = operator.solve_gram(y - operator(m), damping.to(y), scale=scale.to(y))
        return m + per_row(scale, m) * operator.adjoint(u)

    def filtered(y: Tensor) -> Tensor:
        svd = operator.svd(y)
        if svd is None:
            return operator.adjoint(y)
        s = svd.singular_values
        return svd.v(s * svd.ut(y)) + svd.v(svd.vt(operator.adjoint(y)))

    solves: dict[str, Callable[[Tensor], Tensor]] = {
        "a posterior mean by solve_gram": mean,
        "images from svd": filtered,
        "gram_log_determinant": lambda y: operator.gram_log_determinant(damping.to(y), like=y),
        "gram_diagonal": lambda y: operator.gram_diagonal(damping.to(y), like=y),
    }
    for name, solve in solves.items():
        found, expected = solve(y.float()), solve(y)
        for dtype, value in ((torch.float32, found), (torch.float64, expected)):
            assert value.dtype == dtype, f"{name}: {dtype} measurements gave {value.dtype}"
        _close(found.double(), expected, f"{name}: float32 and float64", 1e-3)


CHECKS: tuple[Callable[[Example], None], ...] = (
    check_shapes,
    check_rows,
    check_gradient,
    check_purity,
    check_saving,
)
LINEAR_CHECKS: tuple[Callable[[Example], None], ...] = (
    check_adjoint,
    check_pinv,
    check_solve_gram,
    check_solve_rows,
    check_svd,
    check_single_precision,
)


def _solved(y: Tensor) -> float:
    """How far two solves may differ: other devices add in no fixed order, which steps magnify."""
    return 1e-10 if y.device.type == "cpu" else 1e-7


def _close(actual: Tensor, expected: Tensor, what: str, tolerance: float) -> None:
    assert actual.shape[1:] == expected.shape[1:], (
        f"{what} have shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    )
    error = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
    assert error <= tolerance, f"{what} differ by {error:.2g}, more than {tolerance:.0g}"
