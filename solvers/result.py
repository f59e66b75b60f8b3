"""What a solver returns."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from genprior.operators.files import write_atomically
from genprior.operators.files.notebook import html_card, sizes
from genprior.priors.files import digest_of

_FORMAT = "genprior-result-2"

_TENSORS = ("samples", "mean", "std", "latents", "converged")
_NUMBERS = ("point_estimate", "antithetic", "forwards", "vjps", "seconds", "solver")


@dataclass(frozen=True)
class Result:
    """Samples from p(x | y) for B images, or a point estimate, and what they cost.

    Attributes:
        samples: (B, S, C, H, W).
        mean: (B, C, H, W): exact where known, else the samples' mean.
        std: (B, C, H, W): exact where known, else the samples' standard deviation (divisor
            S - 1, or `paired_std`); None where a single sample leaves it unknown.
        point_estimate: True for a MAP: S = 1, and `std` is None.
        latents: (B, S, *latent_shape), where the solver worked on latents.
        trace: Named tensors (steps, B): how the solver went, averaged over an image's samples.
        converged: (B,) bool. False also where a network returned NaN.
        forwards: Network evaluations per sample, counted.
        vjps: Vector-Jacobian products of the network per sample, counted.
        seconds: Wall time of the whole call.
        solver: The solver and its settings, in words.
        antithetic: Whether samples 2k and 2k + 1 were drawn with opposite noise. What asks for
            independent samples, as coverage and CRPS do, wants one of each pair.
    """

    samples: Tensor
    mean: Tensor
    std: Tensor | None
    point_estimate: bool
    converged: Tensor
    forwards: float
    vjps: float
    seconds: float
    latents: Tensor | None = None
    trace: dict[str, Tensor] = field(default_factory=dict)
    solver: str = ""
    antithetic: bool = False

    def __repr__(self) -> str:
        images, samples, *shape = self.samples.shape
        what = "a point estimate" if self.point_estimate else f"{samples} samples"
        return (
            f"Result({images} x {what} of {tuple(shape)} by {self.solver or 'no solver'}, "
            f"{int(self.converged.sum())} of {images} converged, {self.forwards:g} forwards and "
            f"{self.vjps:g} VJPs per sample, {self.seconds:.3g} s)"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: mean, spread and samples of at most four images, and a table."""
        images, samples, *shape = self.samples.shape
        what = "point estimates" if self.point_estimate else f"{samples} samples"
        table = {
            "solver": self.solver or "none is named",
            "samples": f"{images} x {what} of {sizes(shape)}",
            "mean": f"from {self.mean.min().item():.3g} to {self.mean.max().item():.3g}",
            "std": "unknown",
            "converged": f"{int(self.converged.sum())} of {images}",
            "evaluations": f"{self.forwards:g} forwards and {self.vjps:g} VJPs per sample",
            "seconds": f"{self.seconds:.3g}",
        }
        top = 0.0
        if self.std is not None:
            top = self.std.max().item()
            table["std"] = f"{self.std.mean().item():.3g} on average, at most {top:.3g}"
        return html_card("Result", table, [self._pictures(i, top) for i in range(min(images, 4))])

    def _pictures(self, image: int, top: float) -> list[tuple[str, Tensor]]:
        """Mean, spread (white is `top`) and at most four samples of one image."""
        if self.point_estimate:
            return [("estimate", self.mean[image])]
        line = [("mean", self.mean[image])]
        if self.std is not None:
            line.append((f"std, white: {top:.2g}", self.std[image] / (top or 1.0)))
        shown = enumerate(self.samples[image, :4])
        return line + [(f"sample {i + 1}", sample) for i, sample in shown]

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, which is replaced whole or not at all."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {f"trace.{name}": value for name, value in self.trace.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if v is not None}
        header = {"format": _FORMAT}
        header["result"] = json.dumps({name: getattr(self, name) for name in _NUMBERS})
        header["sha256"] = digest_of(header, tensors)
        write_atomically(path, to_bytes(tensors, metadata=header))

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Result:
        """Read what `save` wrote.

        Raises:
            ValueError: The file is truncated, altered or holds something else.
        """
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        if header.get("format") != _FORMAT:
            raise ValueError(
                f"{path} holds {header.get('format', 'no format')!r}, not {_FORMAT}: "
                "other versions wrote other results; weights are read by genprior.load"
            )
        if header.get("sha256") != digest_of(header, stored):
            raise ValueError(f"{path} is altered: its contents do not have their sha256")
        tensors = {name: tensor.to(device) for name, tensor in stored.items()}
        trace = {k.removeprefix("trace."): v for k, v in tensors.items() if k.startswith("trace.")}
        known = {name: tensors.get(name) for name in _TENSORS}
        return cls(**known, **json.loads(header["result"]), trace=trace)


def independent_sets(samples: Tensor, antithetic: bool) -> list[Tensor]:
    """Cut samples (B, S, ...) into sets of independent ones: two where pairs are antithetic."""
    return [samples[:, ::2], samples[:, 1::2]] if antithetic else [samples]


def paired_std(samples: Tensor) -> Tensor:
    """Return the standard deviation, (B, ...), of samples (B, S, ...) in pairs 2k and 2k + 1.

        std^2 = mean of ((a - b) / 2)^2 + variance of (a + b) / 2

    Its square is unbiased however the two of a pair depend on each other, if pairs do not.
    """
    first, second = samples[:, ::2], samples[:, 1::2]
    within = ((first - second) / 2).square().mean(1)
    return (within + ((first + second) / 2).var(1)).sqrt()
