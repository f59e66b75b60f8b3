"""Random draws: batching does not matter, the global generator is never used."""

import pytest
import torch
from tools import identical

from genprior.operators import kernels
from genprior.operators.random import Shared, check_generators, normal, poisson, spawn, uniform


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_poisson(shape, generator, **options):
    return poisson(torch.full(shape, 7.0, dtype=torch.float64), generator)


DRAWS = pytest.mark.parametrize("draw", [normal, uniform, draw_poisson])


@DRAWS
def test_row_i_depends_on_generator_i_alone(draw):
    """Catches rows whose noise changes with their neighbours or the batch size."""
    batch = draw((3, 2, 5), generators(1, 2, 1))
    alone = draw((1, 2, 5), generators(2))
    assert identical(batch[1], alone[0])
    assert identical(batch[0], batch[2])
    assert not identical(batch[0], batch[1])


@DRAWS
def test_one_generator_is_used_up(draw):
    """Catches a generator that is copied or reseeded: the second draw must differ."""
    (generator,) = generators(1)
    first, second = draw((2, 8), generator), draw((2, 8), generator)
    assert not identical(first, second)
    assert identical(first, draw((2, 8), generators(1)[0]))


@DRAWS
def test_no_generator_is_fresh_entropy(draw):
    """Catches a fixed default seed, which would make 'random' samples equal."""
    assert not identical(draw((2, 50), None), draw((2, 50), None))


def test_dtype_and_device(device):
    """Catches noise that stays on the generator's device or in float32."""
    for draw in (normal, uniform):
        drawn = draw((2, 3), generators(1, 2), dtype=torch.float64, device=device)
        assert (drawn.dtype, drawn.device.type) == (torch.float64, device.type)
        assert identical(drawn.cpu(), draw((2, 3), generators(1, 2), dtype=torch.float64))


def test_poisson_has_its_mean_and_variance():
    """Catches a rate used as a variance of something else."""
    (generator,) = generators(0)
    counts = poisson(torch.full((20000,), 7.0, dtype=torch.float64), generator)
    assert abs(counts.mean() - 7) < 5 * (7 / 20000) ** 0.5
    # Var(s^2) of a Poisson is (rate + 2 rate^2) / n.
    assert abs(counts.var() - 7) < 5 * ((7 + 2 * 49) / 20000) ** 0.5


def test_children_do_not_depend_on_siblings():
    """Catches seeds that change with the number of images in the batch."""
    children = spawn(generators(1, 2), 2, per=3)
    alone = spawn(generators(2), 1, per=3)
    together = [torch.rand(4, generator=g) for g in children]
    assert all(
        identical(a, torch.rand(4, generator=b)) for a, b in zip(together[3:], alone, strict=True)
    )
    assert len({tuple(row.tolist()) for row in together}) == 6


def test_one_parent_gives_different_children():
    """Catches every row of a solver sharing one seed."""
    rows = [torch.rand(4, generator=g) for g in spawn(generators(1)[0], 3, per=2)]
    assert len({tuple(row.tolist()) for row in rows}) == 6


@pytest.mark.parametrize("draw", [normal, uniform])
def test_an_empty_batch_is_served(draw):
    """Catches torch.stack of nothing."""
    assert draw((0, 3), []).shape == (0, 3)


def test_bad_generators_are_named():
    """Catches a seed passed for a generator, and too few generators."""
    with pytest.raises(TypeError, match="int"):
        check_generators(3, 1)
    with pytest.raises(TypeError, match="list"):
        check_generators([1, 2], 2)
    with pytest.raises(ValueError, match="2 generators came for 3 images"):
        normal((3, 2), generators(1, 2))
    with pytest.raises(TypeError, match=r"for a seed write torch.Generator\(\)"):
        kernels.motion(5, generator=0)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_gets_the_same_draws_however_it_is_cut(parts):
    """Would catch noise that changes with the number of devices, or that parts have in common."""

    def drawn(parts, draw):
        count = 8 // parts
        shares = [Shared.seeded(5, first=i * count, count=count, whole=8) for i in range(parts)]
        return torch.cat([draw(count, shared) for shared in shares])

    draws = (
        lambda n, g: normal((n, 3, 2), g),
        lambda n, g: torch.stack((uniform((n,), g), uniform((n,), g)), 1),  # one after another
        lambda n, g: poisson(torch.full((n, 3), 4.0), g),
        lambda n, g: normal((n, 5), spawn(g, n)),
    )
    for draw in draws:
        whole = drawn(1, draw)
        assert len(whole.unique(dim=0)) == 8
        assert identical(drawn(parts, draw), whole)
    with pytest.raises(ValueError, match="a generator for 4 rows was asked for 3"):
        normal((3, 2), Shared.seeded(0, first=0, count=4, whole=8))
