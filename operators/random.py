"""Random draws that never touch the global generator and do not depend on batching."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Union

import torch
from torch import Tensor

Generators = Union[torch.Generator, Sequence[torch.Generator], None]  # noqa: UP007 (3.10)
"""None (fresh entropy), one generator for the whole batch, or one for each image."""


class Mirrored(torch.Generator):
    """A generator whose normal draws are the negatives of those that its seed gives."""


class Shared(torch.Generator):
    """A generator for some rows of a batch: it draws for all of them, and these take their own.

    So what a row gets does not depend on how the batch is cut among devices and parts.
    """

    first: int
    count: int
    whole: int

    @classmethod
    def seeded(
        cls, seed: int, device: torch.device | str = "cpu", *, first: int, count: int, whole: int
    ) -> Shared:
        """Return one for the rows first ... first + count - 1 of `whole`."""
        generator = cls(device)
        generator.first, generator.count, generator.whole = first, count, whole
        generator.manual_seed(seed)
        return generator

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[torch.Generator]:
        """Give one generator for each row, for draws of another kind than those below."""
        return iter(spawn(self, self.count))

    def own(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Return this share of what `draw(rows)` gives for all rows."""
        return draw(self.whole)[self.first : self.first + self.count]


def _fresh() -> torch.Generator:
    # Not generator.seed(): it opens a file, which has taken half a millisecond.
    return torch.Generator().manual_seed(secrets.randbits(63))


def check_generators(generator: Generators, count: int) -> None:
    """Raise unless `generator` is None, one generator or a sequence of `count` of them."""
    if isinstance(generator, Shared) and generator.count != count:
        raise ValueError(f"a generator for {generator.count} rows was asked for {count}")
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, Sequence) or not all(
        isinstance(g, torch.Generator) for g in generator
    ):
        raise TypeError(
            "generator must be None, a torch.Generator or a sequence of them, "
            f"not {type(generator).__name__}: for a seed write torch.Generator().manual_seed(0)"
        )
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators came for {count} images: pass one each")


def spawn(
    generator: Generators, count: int, *, per: int = 1, mirrored: bool = False
) -> list[torch.Generator]:
    """Seed `count * per` independent generators, image-major.

    Every row of a solver gets its own, so results do not depend on how rows are grouped into
    chunks. A sequence of `count` generators seeds `per` children each; `mirrored` gives each
    second one the seed of the one before, and makes it `Mirrored`.
    """
    check_generators(generator, count)
    if not isinstance(generator, Sequence):
        one = _fresh() if generator is None else generator
        draw = lambda rows: _seeds(one, (rows, per))  # noqa: E731
        seeds = one.own(draw) if isinstance(one, Shared) else draw(count)
        device = one.device
    else:
        seeds = [_seeds(g, (per,)) for g in generator]
        device = generator[0].device if generator else None
    children = []
    for row in seeds:
        own = row.tolist()
        for i in range(per):
            mirror = mirrored and i % 2 == 1
            child = (Mirrored if mirror else torch.Generator)(device)
            children.append(child.manual_seed(own[i - 1 if mirror else i]))
    return children


def _seeds(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(2**63 - 1, shape, generator=generator, device=generator.device)


def _draw(
    function: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    check_generators(generator, shape[0])
    if not isinstance(generator, Sequence):
        one = _fresh() if generator is None else generator
        like = {"dtype": dtype, "device": one.device}
        draw = lambda rows: function((rows, *shape[1:]), generator=one, **like)  # noqa: E731
        drawn = one.own(draw) if isinstance(one, Shared) else draw(shape[0])
    else:
        own = generator[0].device if generator else device
        drawn = torch.empty(tuple(shape), dtype=dtype, device=own)
        for row, g in zip(drawn, generator, strict=True):
            function(row.shape, generator=g, out=row)
    return drawn if drawn.is_meta else drawn.to(device)


def normal(
    shape: Sequence[int],
    generator: Generators,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw standard normal noise of shape (B, ...), row i from generator i where there are B.

    Noise is drawn on the generator's device, then moved to `device`.
    """
    drawn = _draw(torch.randn, shape, generator, dtype, device)
    if isinstance(generator, Sequence):
        for row, g in zip(drawn, generator, strict=True):
            if isinstance(g, Mirrored):
                row.neg_()
    return drawn


def uniform(
    shape: Sequence[int],
    generator: Generators,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw numbers uniform on [0, 1) of shape (B, ...), as `normal` does."""
    return _draw(torch.rand, shape, generator, dtype, device)


def poisson(rate: Tensor, generator: Generators) -> Tensor:
    """Draw Poisson counts with the means `rate` (B, ...), as `normal` does."""
    check_generators(generator, len(rate))
    if isinstance(generator, Shared):  # a count takes more or fewer numbers, by its rate
        generator = spawn(generator, len(rate))
    if not isinstance(generator, Sequence):
        one = _fresh() if generator is None else generator
        return torch.poisson(rate.to(one.device), generator=one).to(rate.device)
    rows = [poisson(r[None], g) for r, g in zip(rate, generator, strict=True)]
    return torch.cat(rows) if rows else torch.empty_like(rate)


def systematic(weights: Tensor, count: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw `count` of each row's P items, each as often as its weight is due: int64 (B, count).

    Args:
        weights: (B, P), >= 0, each row's sum 1 but for rounding.
        count: Draws for each row; one uniform number serves them all.
        generators: One for each row.
    Source: Kitagawa 1996, "Monte Carlo filter and smoother", appendix.
    """
    cumulative = weights.cumsum(1)
    u = uniform((len(weights), 1), generators, dtype=weights.dtype, device=weights.device)
    places = (torch.arange(count, device=u.device) + u) / count * cumulative[:, -1:]
    return torch.searchsorted(cumulative, places).clamp(max=weights.shape[1] - 1)
