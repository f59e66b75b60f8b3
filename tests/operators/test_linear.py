"""Operators against independent references, and their bad arguments."""

import warnings

import pytest
import torch
from cases import COLOUR, LINEAR_OPERATORS, per_image_masks
from tools import identical, seeded
from torch.nn.functional import avg_pool2d, conv2d, pad

from genprior.operators import (
    Blur,
    Compose,
    CompressedSensing,
    Downsampling,
    Identity,
    Inpainting,
    LinearOperator,
    Matrix,
    conjugate_gradient,
    kernels,
    masks,
)
from genprior.operators.random import normal, uniform

F64 = torch.float64


def images(*shape, seed=0):
    return uniform(shape, seeded(seed), dtype=F64)


def noise(*shape, seed=0):
    return normal(shape, seeded(seed), dtype=F64)


# --- masks in use


def test_true_means_measured():
    """Catches a mask read the wrong way round, and missing pixels that leak into y."""
    mask = torch.tensor([[[True, False]]])
    x = torch.tensor([[[[3.0, 5.0]], [[7.0, torch.nan]]]])
    assert Inpainting(mask)(x).tolist() == [[[[3.0, 0.0]], [[7.0, 0.0]]]]


def test_a_mask_solves_on_the_whole_space():
    """Catches v / damping missing outside the mask, and 0/0 where nothing damps it."""
    operator = Inpainting(torch.tensor([[[True, False]]]))
    v = torch.tensor([[[[3.0, 4.0]]]])
    assert operator.solve_gram(v, 0.5, scale=1.0).tolist() == [[[[2.0, 8.0]]]]
    assert operator.solve_gram(v, 0.0).tolist() == [[[[3.0, 0.0]]]]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_one_channel_mask_serves_any_channels(channels):
    """Catches a mask tied to the channel count of the first image."""
    operator = Inpainting(per_image_masks())
    x = images(3, channels, 8, 12)
    assert identical(operator(x) != 0, per_image_masks().expand_as(x))


# --- convolutions


def lopsided(h, w):
    kernel = images(h, w)
    return kernel / kernel.sum()


@pytest.mark.parametrize("size", [(4, 3), (3, 4), (5, 5), (1, 2)])
def test_blur_is_the_convolution(size):
    """Catches a correlation in place of a convolution, an off-centre kernel, a bad border."""
    kernel, x = lopsided(*size), images(2, 3, 8, 12)
    weight = kernel.flip(0, 1).expand(3, 1, *size)
    valid = conv2d(x, weight, groups=3)
    torch.testing.assert_close(Blur(kernel, COLOUR, boundary="valid")(x), valid)
    (h, w), (top, left) = size, (size[0] // 2, size[1] // 2)
    wrapped = pad(x, (w - 1 - left, left, h - 1 - top, top), mode="circular")
    # conv2d's first output is centred (h - 1 - h // 2) pixels after the first pixel.
    shifted = conv2d(wrapped, weight, groups=3)
    circular = Blur(kernel, COLOUR)(x)
    torch.testing.assert_close(circular, shifted)
    inner = circular[..., h - 1 - top : 8 - top, w - 1 - left : 12 - left]
    torch.testing.assert_close(inner, valid)


def test_blur_moves_nothing():
    """Catches a shift: a centred unit impulse must act as the identity."""
    kernel = torch.zeros(5, 3, dtype=F64)
    kernel[2, 1] = 1
    x = images(1, 1, 8, 12)
    torch.testing.assert_close(Blur(kernel, (1, None, None))(x), x)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_default_downsampling_averages_blocks(factor):
    """Catches decimation at the wrong pixel of the block."""
    x = images(2, 3, 12, 24)
    operator = Downsampling(factor, (3, 12, 24))
    torch.testing.assert_close(operator(x), avg_pool2d(x, factor))


@pytest.mark.parametrize(("factor", "side"), [(2, 4), (4, 2), (4, 6), (3, 5), (3, 1)])
def test_downsampling_stays_in_the_middle_of_blocks(factor, side):
    """Catches a half-pixel shift with other kernels: of a ramp, each pixel is its block's mean."""
    n = 12 * factor
    ramp = torch.arange(n, dtype=F64).expand(1, 1, n, n)
    kernel = kernels.uniform(side)
    blocks = avg_pool2d(ramp, factor)[..., 3:-3]
    small = Downsampling(factor, (1, n, n), kernel=kernel)(ramp)[..., 3:-3]
    torch.testing.assert_close(small, blocks)


# --- compressed sensing


@pytest.mark.parametrize("structured", [False, True])
def test_sensing_keeps_the_norm_on_average(structured):
    """Catches a wrong variance of the rows, or subsampling without rescaling."""
    x = images(1, 2, 5, 4)
    draws = seeded()
    ratios = torch.stack(
        [
            CompressedSensing((2, 5, 4), 10, generator=draws, structured=structured)(x).norm() ** 2
            for _ in range(400)
        ]
    ) / (x.norm() ** 2)
    error = ratios.std() / ratios.numel() ** 0.5
    assert (ratios.mean() - 1).abs() < 5 * error


def test_structured_sensing_is_a_subsampled_dct():
    """Catches another transform, another normalisation, rows that are not orthogonal."""
    from scipy.fft import dctn

    operator = CompressedSensing((2, 5, 4), 12, generator=seeded(), structured=True)
    x = images(1, 2, 5, 4)
    signed = torch.where(operator.map.negative, -x, x)[0].numpy()
    expected = torch.from_numpy(dctn(signed, norm="ortho")).flatten()[operator.map.kept]
    torch.testing.assert_close(operator(x)[0], expected * (40 / 12) ** 0.5)
    assert operator.map.kept.unique().numel() == 12


def test_sensing_is_drawn_once_from_its_generator():
    """Catches rows redrawn at every call, or drawn from the global generator."""
    x = images(1, 1, 4, 4)
    first = CompressedSensing((1, 4, 4), 5, generator=seeded(1))
    again = CompressedSensing((1, 4, 4), 5, generator=seeded(1))
    other = CompressedSensing((1, 4, 4), 5, generator=seeded(2))
    assert identical(first(x), first(x))
    assert identical(first(x), again(x))
    assert not identical(first(x), other(x))


# --- solves


@pytest.mark.parametrize("name", LINEAR_OPERATORS)
def test_pinv_is_the_dense_one(name):
    """Catches a least-squares solution that is not of least norm, or y taken as consistent."""
    case = LINEAR_OPERATORS[name]
    operator = case.make()
    assert isinstance(operator, LinearOperator)
    shape = operator(images(operator.rows or 2, *case.image_shape)).shape
    y = noise(*shape)
    a = operator.dense_matrix(y)
    expected = torch.linalg.pinv(a, rtol=1e-7) @ y.flatten(1)[..., None]
    error = operator.pinv(y).flatten(1) - expected[..., 0]
    assert error.norm() <= 1e-5 * expected.norm()


def test_solves_without_damping():
    """Catches an invertible A A^T that is refused or cut off when there is no noise."""
    for operator in (
        Matrix(noise(20, 80), (1, 8, 10)),
        Blur(kernels.gaussian(0.6), (1, 8, 10)),
        Downsampling(2, (1, 8, 10)),
    ):
        v = noise(*operator(images(2, 1, 8, 10)).shape)
        u = operator.solve_gram(v, 0.0, scale=2.0)
        torch.testing.assert_close(2 * operator(operator.adjoint(u)), v)


def test_the_factorisation_is_reused(monkeypatch):
    """Catches an eigendecomposition at every solve, and a stale one after the matrix changes."""
    operator = Matrix(noise(6, 16), (1, 4, 4))
    count = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: count.append(1) or eigh(m))
    y = noise(3, 6)
    for y_ in (y, y.float(), y):
        operator.solve_gram(y_, 0.1)
    assert len(count) == 1
    operator.matrix.mul_(2)
    u = operator.solve_gram(y, 0.1)
    assert len(count) == 2
    torch.testing.assert_close(operator(operator.adjoint(u)) + 0.1 * u, y)


@pytest.mark.parametrize("name", LINEAR_OPERATORS)
def test_float32_solves_are_accurate(name):
    """Catches solves that lose float32: they must stay near their float64 answers."""
    case = LINEAR_OPERATORS[name]
    operator = case.make()
    v = noise(*operator(images(operator.rows or 2, *case.image_shape)).shape)
    exact = operator.solve_gram(v, 0.01)
    rough = operator.solve_gram(v.float(), 0.01)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() <= 1e-3 * exact.norm()


# --- conjugate gradients


def spd(batch, n, condition, seed=0):
    q = torch.linalg.qr(noise(batch, n, n, seed=seed)).Q
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=F64)
    return q @ torch.diag(values) @ q.mT


def test_conjugate_gradients_solve():
    """Catches a wrong step, and rows that are reported as converged but are not."""
    m, b = spd(4, 12, 100.0), noise(4, 12)
    x, converged, iterations = conjugate_gradient(
        lambda p: (m @ p[..., None])[..., 0], b, tolerance=1e-10
    )
    residual = ((m @ x[..., None])[..., 0] - b).norm(dim=1) / b.norm(dim=1)
    assert converged.all()
    assert (residual < 2e-10).all()
    assert (iterations >= 5).all()


def test_rows_of_conjugate_gradients_are_independent():
    """Catches a step or a stop shared by the batch: an easy row beside a hard one."""
    # Its 12th iteration leaves 1e-11 whatever the rounding; were it worse conditioned, the count
    # of iterations would follow the rounding, which differs alone and in a batch.
    hard, b = spd(2, 12, 30.0), noise(2, 12)
    m = torch.stack([torch.eye(12, dtype=F64), hard[1]])

    def solve(rows):
        return conjugate_gradient(
            lambda p: (m[rows] @ p[..., None])[..., 0], b[rows], tolerance=1e-6
        )

    x, converged, iterations = solve([0, 1])
    assert converged.all()
    assert iterations[0] == 1
    for row in (0, 1):
        alone, _, count = solve([row])
        torch.testing.assert_close(alone[0], x[row], rtol=1e-9, atol=1e-9)
        assert count[0] == iterations[row]


def test_conjugate_gradients_report_what_they_did_not_reach():
    """Catches silence: a stop at max_iterations, and a right-hand side outside the range."""
    m, b = spd(1, 12, 1e6), noise(1, 12)
    _, converged, iterations = conjugate_gradient(
        lambda p: (m @ p[..., None])[..., 0], b, tolerance=1e-12, max_iterations=3
    )
    assert (converged.item(), iterations.item()) == (False, 3)
    x, converged, _ = conjugate_gradient(lambda p: 0 * p, b)
    assert not converged.item()
    assert x.isfinite().all()
    hard = Compose(Identity(COLOUR), Blur(lopsided(3, 3), COLOUR))
    hard.max_iterations = 2
    with pytest.warns(RuntimeWarning, match="2 of 2 rows"):
        hard.solve_gram(noise(2, *COLOUR), 1e-4)


def test_a_zero_row_is_solved_at_once():
    """Catches 0/0 for a measurement of zeros."""
    x, converged, iterations = conjugate_gradient(lambda p: p, torch.zeros(1, 3))
    assert (x.norm().item(), converged.item(), iterations.item()) == (0, True, 0)


# --- state


def test_copies_leave_the_original_alone():
    """Catches Module.to's in-place move: a copy in float32 must not change its source."""
    operator = Blur(lopsided(3, 3), COLOUR)
    operator(images(1, *COLOUR))
    copied = operator.copy_to(dtype=torch.float32)
    assert (copied.kernel.dtype, operator.kernel.dtype) == (torch.float32, F64)


def test_copies_forget_what_was_derived():
    """Catches a stale factorisation: remembered, its matrix changed, then copied."""
    operator, y = Matrix(noise(6, 16), (1, 4, 4)), noise(3, 6)
    operator.solve_gram(y, 0.1)
    operator.matrix.mul_(2)
    fresh = Matrix(operator.matrix.clone(), (1, 4, 4)).solve_gram(y, 0.1)
    torch.testing.assert_close(operator.copy_to().solve_gram(y, 0.1), fresh)


def test_take_shares_what_is_not_per_image():
    """Catches a matrix duplicated for each row of a solver."""
    blur = Blur(lopsided(3, 3), COLOUR)
    operator = Compose(Inpainting(per_image_masks()), blur)
    taken = operator.take(torch.tensor([2, 0]))
    assert taken.inner is blur
    assert taken.rows == 2
    assert operator.rows == 3
    assert blur.take(torch.tensor([0])) is blur


def test_open_sizes_ask_for_a_measurement():
    """Catches a guess of the size: the error must name `like`."""
    with pytest.raises(ValueError, match="like="):
        Blur(lopsided(3, 3), (1, None, None)).gram_diagonal(0.1)


def test_dense_spectrum_refuses_large_measurements():
    """Catches an eigendecomposition that would not end."""
    with pytest.raises(ValueError, match="12288 entries"):
        Compose(Identity((3, 64, 64)), Identity((3, 64, 64))).dense_spectrum()


def test_closed_forms_do_not_warn():
    """Catches a fall-back to iterations where there is a closed form."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("blur", "downsampling", "inpainting-per-image", "matrix-rank-deficient"):
            operator = LINEAR_OPERATORS[name].make()
            y = operator(images(operator.rows or 1, *LINEAR_OPERATORS[name].image_shape))
            assert operator.spectrum(y) is not None
            operator.pinv(y)


# --- bad arguments


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Inpainting(torch.ones(1, 4, 4)), TypeError, "bool tensor"),
        (lambda: Inpainting(torch.ones(4, 4, dtype=torch.bool)), ValueError, r"\(4, 4\)"),
        (lambda: Inpainting(torch.zeros(1, 4, 4).bool()), ValueError, "measures nothing"),
        (
            lambda: Inpainting(torch.stack([torch.eye(4), torch.zeros(4, 4)])[:, None].bool()),
            ValueError,
            r"image\(s\) \[1\]",
        ),
        (
            lambda: Inpainting(torch.ones(1, 4, 4).bool(), image_shape=(3, 4, 5)),
            ValueError,
            "does not fit",
        ),
        (
            lambda: Inpainting(torch.ones(3, 4, 4).bool(), image_shape=(1, 4, 4)),
            ValueError,
            "does not fit",
        ),
        (lambda: Blur(torch.ones(5, 5), (1, 4, 8)), ValueError, "exceeds the image"),
        (lambda: Blur(torch.ones(5), (1, 8, 8)), ValueError, r"\(h, w\)"),
        (lambda: Blur(torch.ones(2, 2), (8, 8)), ValueError, r"\(C, H, W\)"),
        (lambda: Blur(torch.full((2, 2), torch.nan), (1, 8, 8)), ValueError, "finite"),
        (lambda: Blur(torch.ones(2, 2), (1, 8, 8), boundary="same"), ValueError, "'same'"),
        (lambda: Downsampling(3, (1, 8, 9)), ValueError, "does not divide"),
        (lambda: Downsampling(0, (1, 8, 8)), ValueError, "factor"),
        (lambda: Downsampling(2, (1, 8, 8), kernel=torch.ones(9, 9)), ValueError, "exceeds"),
        (lambda: Matrix(torch.ones(2, 9), (1, 4, 4)), ValueError, r"\(m, 16\)"),
        (lambda: Matrix(torch.ones(2, 9), (1, None, 3)), ValueError, "without None"),
        (
            lambda: CompressedSensing((1, 2, 2), 5, generator=seeded(), structured=True),
            ValueError,
            "at most 4",
        ),
        (lambda: CompressedSensing((1, 2, 2), 0, generator=seeded()), ValueError, ">= 1"),
        (
            lambda: Compose(Identity((1, 4, 4)), Downsampling(2, (1, 4, 4))),
            ValueError,
            "takes images",
        ),
        (
            lambda: Compose(Inpainting(per_image_masks()), Inpainting(per_image_masks()[[0, 1]])),
            ValueError,
            "for 3 images",
        ),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    """Catches an operator that is built on nonsense and fails later, elsewhere."""
    with pytest.raises(error, match=message):
        build()


def test_a_factor_must_divide_what_comes():
    """Catches an image cropped silently where the operator serves any size."""
    with pytest.raises(ValueError, match="does not divide"):
        Downsampling(2, (1, None, None))(images(1, 1, 5, 4))


def test_masks_of_every_kind_are_usable():
    """Catches a mask maker whose result Inpainting refuses."""
    for mask in (masks.half((8, 12)), masks.stripes((8, 12)), masks.box((8, 12), size=3)):
        assert Inpainting(mask).image_shape == (None, 8, 12)
