"""How work is cut up and put together again, what is said of it, and what a Result tells."""

import time
from dataclasses import dataclass

import pytest
import torch
from tools import randn, seeded

from genprior.operators import GaussianNoise, Identity, Problem
from genprior.priors import DenoisingPrior, Gaussian
from genprior.solvers import (
    DPS,
    MMPS,
    SMC,
    LatentMAP,
    LatentSampler,
    PiGDM,
    REDDiff,
    Result,
    Solution,
    Solver,
)
from genprior.solvers.base import rows_in_flight
from genprior.solvers.chunks import join
from genprior.solvers.result import independent_sets, paired_std

SHAPE = (1, 2, 2)
PRIOR = Gaussian(torch.zeros(SHAPE).double(), torch.zeros(0, *SHAPE).double(), residual=0.5)


def posed(count=1):
    return Problem(torch.zeros(count, *SHAPE).double(), Identity(SHAPE), GaussianNoise(0.1))


@dataclass(frozen=True)
class _Told(Solver):
    """Converges where it is told to; keeps the sizes of its chunks."""

    failing: tuple[int, ...] = ()
    measure: str = ""
    needs = (DenoisingPrior,)

    def _solve(self, chunk, prior):
        count = len(chunk.problem.y)
        found = torch.full((count, chunk.samples, *SHAPE), 1.0).double()
        found += torch.arange(chunk.samples).double()[:, None, None, None]
        sound = torch.tensor([i not in self.failing for i in range(count)])
        trace = {self.measure: torch.arange(2.0 * count).reshape(2, count)} if self.measure else {}
        return Solution(found, sound, trace=trace)


@pytest.mark.parametrize(
    ("solver", "count", "samples", "batch_size", "expected"),
    [
        (PiGDM(), 3, 2, 6, [(0, 3, 0, 2)]),
        (PiGDM(), 3, 2, 5, [(0, 2, 0, 2), (2, 3, 0, 2)]),
        (PiGDM(), 2, 2, 2, [(0, 1, 0, 2), (1, 2, 0, 2)]),
        (PiGDM(), 1, 5, 2, [(0, 1, 0, 2), (0, 1, 2, 4), (0, 1, 4, 5)]),
        (PiGDM(), 1, 2, 1, [(0, 1, 0, 1), (0, 1, 1, 2)]),
        (SMC(particles=8), 3, 2, 17, [(0, 2, 0, 2), (2, 3, 0, 2)]),
        (SMC(particles=8), 2, 20, 8, [(0, 1, 0, 20), (1, 2, 0, 20)]),
        (LatentMAP(restarts=4), 3, 1, 8, [(0, 2, 0, 1), (2, 3, 0, 1)]),
        (LatentMAP(restarts=4), 2, 1, 1, [(0, 1, 0, 1), (1, 2, 0, 1)]),
        (LatentSampler(chains=4), 3, 2, 9, [(0, 2, 0, 2), (2, 3, 0, 2)]),
        (LatentSampler(chains=4), 3, 6, 9, [(0, 1, 0, 6), (1, 2, 0, 6), (2, 3, 0, 6)]),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, Solver) else "",
)
def test_blocks(solver, count, samples, batch_size, expected):
    """Catches more rows in flight than asked for, images split before it must be, rows of
    particles and restarts not counted, and samples that belong together torn apart."""
    assert list(solver._chunks(count, samples, SHAPE, batch_size)) == expected


def test_rows_where_nobody_asks():
    """Catches another size of a default batch than two million pixel values, and less than one
    row of a large photo."""
    assert rows_in_flight(None, 500, (3, 64, 64), None) == 2**21 // (3 * 64 * 64) == 170
    assert rows_in_flight(None, 500, (3, 2000, 2000), None) == 1
    assert rows_in_flight(None, 5, (3, 64, 64), None) == 5
    assert rows_in_flight(None, 5, (3, 64, 64), 2) == 2
    assert rows_in_flight(PiGDM(), 500, (3, 64, 64), None) == 170
    assert rows_in_flight(SMC(), 4, (3, 64, 64), None) == 256
    assert rows_in_flight(LatentSampler(), 2, (3, 64, 64), None) == 4


def test_parts_are_put_together():
    """Catches samples along the wrong axis, traces that count each chunk alike, and a trace that
    ended early taken for one of zeros."""

    def part(rows, samples, steps, value):
        filled = torch.full((rows, samples, *SHAPE), value)
        sound = torch.ones(rows, dtype=torch.bool)
        trace = {"x": torch.full((steps, rows), value)}
        return Solution(filled, sound, mean=filled[:, 0], latents=filled, trace=trace)

    found = join([(0, part(2, 3, 2, 1.0)), (0, part(2, 1, 2, 5.0)), (2, part(1, 4, 3, 7.0))])
    assert found.samples[:, :, 0, 0, 0].tolist() == [[1, 1, 1, 5], [1, 1, 1, 5], [7, 7, 7, 7]]
    assert found.latents.shape == found.samples.shape
    assert found.mean[:, 0, 0, 0].tolist() == [1, 1, 7]
    assert found.trace["x"][:2].tolist() == [[2, 2, 7], [2, 2, 7]]
    assert found.trace["x"][2].isnan().tolist() == [True, True, False]
    assert found.std is None
    alone = part(2, 3, 2, 1.0)
    assert join([(0, alone)]) is alone


def test_words_about_what_failed():
    """Catches a warning that names other images, more than eight or none; and another measure's
    last value than the image's own."""
    with pytest.warns(RuntimeWarning) as caught:
        _Told((1, 3), "residual")(posed(4), PRIOR)
    words = str(caught[0].message)
    assert "_Told: 2 of 4 images have not converged: number 1, 3; the last residual" in words
    assert "|y - A x| is 5, 7, where noise makes it 1. Try more steps" in words
    with pytest.warns(RuntimeWarning) as caught:
        _Told(tuple(range(8)), "r_hat")(posed(9), PRIOR)
    words = str(caught[0].message)
    assert "number 0, 1, 2, 3, 4, 5, 6, 7; R-hat is 9, 10, 11, 12, 13, 14, 15, 16, where" in words
    with pytest.warns(RuntimeWarning) as caught:
        _Told(tuple(range(9)), "r_hat")(posed(9), PRIOR)
    words = str(caught[0].message)
    assert (
        "number 0, 1, 2, 3, 4, 5, 6, 7, ...; R-hat is 9, 10, 11, 12, 13, 14, 15, 16, where"
        in words
    )


def test_moments_of_few_samples():
    """Catches a spread of one sample, and one divided by another number than S - 1."""
    one, two, three = (_Told()(posed(), PRIOR, num_samples=s) for s in (1, 2, 3))
    assert one.std is None
    assert two.std.unique().item() == pytest.approx(0.5**0.5)
    assert three.std.unique().item() == pytest.approx(1)
    assert three.mean.unique().item() == pytest.approx(2)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "1 rows in flight: even one row does not fit"),
        (2, "2 rows in flight: try batch_size=1"),
    ],
)
def test_memory_that_runs_short(count, words, monkeypatch):
    """Catches advice to take what has just failed."""

    def fail(self, chunk, prior):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(_Told, "_solve", fail)
    with pytest.raises(MemoryError, match=words):
        _Told()(posed(count), PRIOR)


@pytest.mark.parametrize("samples", [1, 2])
def test_counts_are_per_sample(samples):
    """Catches evaluations of a batch told as one's own."""
    for count in (1, 3):
        begin = time.perf_counter()
        result = PiGDM(steps=6)(posed(count), PRIOR, num_samples=samples)
        assert (result.forwards, result.vjps) == (6, 6)
        assert 0 < result.seconds < time.perf_counter() - begin


def test_what_a_result_says_of_itself():
    """Catches numbers in the wrong place of the one line that a notebook shows."""
    samples = torch.zeros(2, 5, *SHAPE)
    sound = torch.tensor([True, False])
    result = Result(samples, samples[:, 0], None, False, sound, 12.0, 3.5, 1.234)
    assert repr(result) == (
        "Result(2 x 5 samples of (1, 2, 2) by no solver, 1 of 2 converged, 12 forwards and 3.5 "
        "VJPs per sample, 1.23 s)"
    )


def test_pairs():
    """Catches the two of a pair in one set, and a spread that is not the mean of squares within
    pairs and the variance between them."""
    samples = randn(3, 6, *SHAPE, seed=1)
    first, second = independent_sets(samples, True)
    torch.testing.assert_close(torch.stack([first, second], 2).flatten(1, 2), samples)
    (every,) = independent_sets(samples, False)
    assert every is samples
    half, middle = (first - second) / 2, (first + second) / 2
    variance = (half**2).sum(1) / 3 + ((middle - middle.mean(1, keepdim=True)) ** 2).sum(1) / 2
    torch.testing.assert_close(paired_std(samples) ** 2, variance)


def test_progress_is_one_tick_a_level():
    """Catches a bar that never ends, or ends before the walk."""
    ticks = []

    def follow(steps, label):
        ticks.append((len(steps), label))
        return iter(steps)

    MMPS(steps=9)(posed(), PRIOR, progress=follow, generator=seeded())
    assert ticks == [(7, "MMPS")]  # its start takes two evaluations more


def test_sizes_and_counts_that_do_not_fit():
    """Catches two point estimates of one image, images of another size than the prior's taken
    where the operator leaves it open, and pairs refused that there are."""
    with pytest.raises(ValueError, match="REDDiff gives one point estimate, not 2 samples"):
        REDDiff()(posed(), PRIOR, num_samples=2)
    y = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    anything = Problem(y, Identity((None, None, None)), GaussianNoise(0.1))
    words = r"y is of images \(1, 3, 3\), Gaussian for \(1, 2, 2\)"
    with pytest.raises(ValueError, match=words):
        PiGDM()(anything, PRIOR)
    for samples, fits in ((2, False), (3, False), (4, True), (5, False), (6, True)):
        solver = DPS(steps=1, antithetic=True)
        if fits:
            assert solver(posed(), PRIOR, num_samples=samples).samples.shape[1] == samples
        else:
            with pytest.raises(ValueError, match=f"must be 4, 6, ..., not {samples}"):
                solver(posed(), PRIOR, num_samples=samples)
