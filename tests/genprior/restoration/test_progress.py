"""How long a restoration takes: chosen by it, told before it, followed during it."""

import pytest
import torch
from deepinv.physics import Tomography
from photos import DENOISE, SIDE, photo, restore, smooth_gaussian, tiny_network
from tools import close

from genprior import solve
from genprior.operators import Blur, GaussianNoise, Problem, from_deepinv
from genprior.priors import VAE, Diffusion, GaussianMixture
from genprior.restoration import progress
from genprior.restoration.kernel_estimate import candidates
from genprior.restoration.progress import Progress, seconds_needed
from genprior.restoration.settings import Solving
from genprior.solve import default_solver
from genprior.solvers import MMPS, DiffPIR, ExactPosterior, LatentMAP, LatentSampler


@pytest.mark.parametrize(
    ("side", "boundary", "solver"),
    [
        (SIDE, "valid", "ExactPosterior"),
        (48, "circular", "ExactPosterior"),
        (48, "valid", "MMPS"),
    ],
)
def test_solver_by_cost(side, boundary, solver):
    """Would catch a default that hangs: an exact posterior that takes an iterative solve for each
    of thousands of pixels; and one given up where it is quick or was asked for."""
    prior = smooth_gaussian(side=side)
    operator = Blur(candidates()["disk:2"], (3, side, side), boundary=boundary)
    problem = Problem(operator(prior.mean.expand(1, -1, -1, -1)), operator, GaussianNoise(0.1))
    assert type(Solving().find_solver(problem, prior)).__name__ == solver
    named = Solving(solver="ExactPosterior").find_solver(problem, prior)
    assert type(named).__name__ == "ExactPosterior"


def test_expected_time(monkeypatch):
    """Would catch an estimate that forgets gradients, samples, steps, or the size."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])

    class Ticking(Diffusion):
        def denoise(self, x, sigma):
            clock[0] += x.shape[-1] * x.shape[-2] / 1e4
            out = x * 1.0
            if out.requires_grad:
                out.register_hook(lambda g: clock.__setitem__(0, clock[0] + g.numel() / 1e4))
            return out

    prior = Ticking(tiny_network(), (3, None, None))
    one = 100 * 200 / 1e4
    assert seconds_needed(DiffPIR(steps=7), prior, [(100, 200)], 2) == pytest.approx(14 * one)
    many = seconds_needed(DiffPIR(steps=7), prior, [(1000, 2000), (50, 40)], 2)
    assert many == pytest.approx(14 * (100 + 0.1) * one)
    gradients = seconds_needed(MMPS(steps=7), prior, [(100, 200)], 2)
    assert gradients == pytest.approx(14 * one * (1 + 4 * 3))


def test_progress_is_said_without_a_terminal(photo_place, capsys, monkeypatch):
    """Would catch hours of silence in a log, shares that pass 100 %, and a thread left behind."""
    following = Progress(2)
    for _ in following(range(4), "walk"):
        pass
    for i in following(range(4), "walk"):
        if i == 2:
            break
    assert following.line().startswith("75% done in 0 s, about 0 s left")
    monkeypatch.setattr(progress, "EVERY", 0.02)
    photo(32, 32)
    restore(*DENOISE, "--steps", "20")
    captured = capsys.readouterr()
    assert "genprior: " in captured.err
    assert "expected  " in captured.out.partition("measured")[0]


def valid_blur(prior, side=SIDE):
    operator = Blur(candidates()["disk:2"], (3, side, side), boundary="valid")
    return Problem.simulate(
        prior.sample(1, generator=torch.Generator().manual_seed(0)),
        operator,
        GaussianNoise(0.1),
        generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize("mixture", [False, True])
def test_tomography_is_solved_by_default_in_no_time(mixture):
    """Would catch a default that hangs in Python too, however few angles were measured."""
    prior = smooth_gaussian(side=32)
    if mixture:
        prior = GaussianMixture.from_components(torch.tensor([0.5, 0.5]), [prior, prior])
    operator = from_deepinv(Tomography(angles=4, img_width=32, normalize=False), (3, 32, 32))
    problem = Problem(operator(prior.data_mean[None]), operator, GaussianNoise(0.02))
    chosen = default_solver(problem, prior)
    assert chosen == (MMPS.steered() if mixture else MMPS())
    assert bool(solve(problem, prior, num_samples=1).converged)


@pytest.mark.parametrize("mixture", [False, True])
def test_exact_posterior_shows_each_iterative_solve(mixture):
    """Would catch an exact solve that is silent, or does work that it does not count, or twice."""
    prior = smooth_gaussian(side=8)
    if mixture:
        prior = GaussianMixture.from_components(torch.tensor([0.5, 0.5]), [prior, prior])
    problem, seen = valid_blur(prior, 8), []

    def follow(steps, label):
        for step in steps:
            posed = []
            seen.append(posed)
            solves.append(posed)
            yield step
            solves.pop()

    solves, real = [[]], problem.operator.solve_gram
    outside = solves[0]
    problem.operator.take = lambda index: problem.operator

    def counted(v, *args, **kwargs):
        solves[-1].append(len(v))
        return real(v, *args, **kwargs)

    problem.operator.solve_gram = counted
    plain = ExactPosterior()(problem, prior, num_samples=2, generator=torch.Generator())
    outside.clear()
    shown = ExactPosterior()(
        problem, prior, num_samples=2, generator=torch.Generator(), progress=follow
    )
    components = 1 + mixture
    assert sum(map(sum, seen)) == components * (12 + 3 * 8 * 8)
    assert sum(outside) < 20 * components
    close(shown.samples, plain.samples, ulps=16)


def test_time_of_an_exact_solve_is_told(monkeypatch):
    """Would catch an estimate for one solve, or one for a solve in closed form."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    prior = smooth_gaussian()
    problem = valid_blur(prior)
    real = problem.operator.solve_gram
    problem.operator.take = lambda index: problem.operator

    def slow(v, *args, **kwargs):
        clock[0] += 0.5 * len(v)
        return real(v, *args, **kwargs)

    problem.operator.solve_gram = slow
    told = seconds_needed(ExactPosterior(), prior, [(SIDE, SIDE)], 4, problem=problem)
    solves = 12 + 3 * SIDE * SIDE
    assert told == pytest.approx(0.5 * solves, rel=0.4)
    following = Progress(1, expected=told)
    assert following.line() == f"at work for 0 s of about {progress.duration(told)}"
    circular = Blur(candidates()["disk:2"], (3, SIDE, SIDE))
    closed = Problem(circular(prior.mean[None]), circular, GaussianNoise(0.1))
    assert seconds_needed(ExactPosterior(), prior, [(SIDE, SIDE)], 4, problem=closed) is None


def test_time_in_the_latent_is_told(monkeypatch):
    """Would catch a latent solver without an estimate, or one that forgets chains or leaps."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])

    class Ticking(VAE):
        def decode(self, z):
            clock[0] += len(z)
            return super().decode(z)

    prior = Ticking((1, 8, 8), 2, network={"hidden": [4]})
    sampler = LatentSampler(steps=10, warm_up=20, leapfrog=3, chains=5)
    assert seconds_needed(sampler, prior, [(8, 8)], 2) == 5 * 30 * 3
    most = LatentMAP(restarts=3)
    assert 0 < seconds_needed(most, prior, [(8, 8)], 1) <= 3 * most.steps


def test_operator_counts_in_the_time(monkeypatch):
    """Would catch an estimate of the network alone where the operator is what takes long."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    prior = smooth_gaussian()
    problem = valid_blur(prior)
    real = problem.operator.adjoint

    def slow(y):
        clock[0] += 2.0
        return real(y)

    problem.operator.adjoint = slow
    told = seconds_needed(DiffPIR(steps=7), prior, [(SIDE, SIDE)], 3, problem=problem)
    assert told == pytest.approx(7 * 3 * 2.0)
