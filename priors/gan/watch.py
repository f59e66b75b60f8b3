"""What goes wrong with a GAN in training, seen from now and then, and said with what to try."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genprior.priors.gan.losses import AdversarialOptions, squared_slope
from genprior.priors.training import Turn

EVERY = 50
"""Steps from one look to the next."""
LATE = 20_000
"""Images before which no collapse is called one."""
NEAR = 0.25
"""Samples this much nearer to each other than images are: the generator has collapsed."""
SURE = 0.9
"""Probability of a class from which a sample counts as one of it."""
SHARE = 0.1
"""Of its even share of the sure samples: from there on a class counts as found."""
SAMPLES = 1000
"""Classified at a look, at least."""
VANISHED = 1e-6
"""Mean gradient of an image's loss in its pixels by which no generator learns."""
PATIENCE = 10
"""Looks in a row that a critic must have won."""

Classifier = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to the scores of K classes (B, K), as a softmax takes them."""

ADVICE = (
    "Try a loss of kind relativistic with r1 and r2, a lower learning rate, or more critic_steps"
)


class Watch:
    """Looks at samples and scores; it changes nothing that training computes.

    Args:
        options: Of the training.
        classifier: Names classes; None where there is none.
    """

    options: AdversarialOptions
    classifier: Classifier | None

    def __init__(self, options: AdversarialOptions, classifier: Classifier | None) -> None:
        self.options, self.classifier = options, classifier
        self._warned, self._won = False, 0

    def samples(
        self,
        turn: Turn,
        fake: Tensor,
        real: Tensor,
        draw: Callable[[int], Tensor],
    ) -> dict[str, Tensor]:
        """Return figures on samples beside the data, and say once where they are all alike.

        Args:
            turn: The generator's.
            fake, real: Its batches.
            draw: Of that many batches of samples more.
        Returns:
            `spread`, the distance of samples from each other over that of images; now and then
            `modes`, the classes that samples show, and `unsure`, the share that shows none.
        """
        figures = {"spread": spread(fake) / spread(real).clamp(min=1e-12)}
        late, looks = turn.images_seen > LATE, turn.step % EVERY == 0
        if looks and late and float(figures["spread"]) < NEAR:
            self._warn(f"samples are {float(figures['spread']):.0%} as far from each other as "
                       "the data")  # fmt: skip
        if looks and self.classifier is not None:
            probabilities = self._classified(draw(math.ceil(SAMPLES / len(fake))))
            figures |= modes(probabilities)
            classes = probabilities.shape[1]
            if late and float(figures["modes"]) < classes / 2:
                found = int(figures["modes"])
                self._warn(f"samples show {found} of {classes} classes")
        return figures

    def _classified(self, x: Tensor) -> Tensor:
        """Return the probabilities of the classes, (n, K)."""
        if isinstance(self.classifier, nn.Module):
            self.classifier.to(x.device).eval()
        assert self.classifier is not None
        with torch.no_grad():
            scores = self.classifier(x)
        if scores.ndim != 2 or len(scores) != len(x):
            raise ValueError(
                f"the classifier gave {tuple(scores.shape)} for {len(x)} images, not (B, classes)"
            )
        return scores.float().softmax(1)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{what}: the generator has collapsed. {ADVICE}", stacklevel=4)

    def scores(
        self, turn: Turn, critic: nn.Module, a: Tensor, b: Tensor, fake: Tensor
    ) -> dict[str, Tensor]:
        """Return figures on scores, and stop a training that the critic has won.

        Args:
            turn: The critic's.
            critic: D.
            a, b: Its scores of real and of generated images, (B,).
            fake: The generated images, as it saw them.
        Returns:
            `gap`, by how much real images score more, which estimates a Wasserstein distance where
            the critic's slope is held to 1; `accuracy`, where the loss has a threshold; now and
            then `pull`, the mean gradient of an image's loss in its pixels.
        Raises:
            ArithmeticError: For 500 steps no image was mistaken and no gradient was left.
        """
        a, b = a.detach(), b.detach()
        figures = {"gap": a.mean() - b.mean()}
        accuracy = self.options.loss.accuracy(a, b)
        if accuracy is None:
            return figures
        figures["accuracy"] = accuracy
        if turn.step % EVERY:
            return figures
        figures["pull"] = self._pull(critic, a, b, fake)
        won = float(accuracy) == 1 and float(figures["pull"]) < VANISHED
        self._won = self._won + 1 if won else 0
        if self._won == PATIENCE:
            raise ArithmeticError(
                f"the critic has won: for {PATIENCE * EVERY} steps, until step {turn.step}, it "
                f"told all images apart, and left the generator a gradient of "
                f"{float(figures['pull']):.1g}. Checkpoints from before are kept. Try a penalty "
                "(r1), a spectral critic, kind non-saturating in place of minimax, or a lower "
                "critic_rate, in another folder"
            )
        return figures

    def _pull(self, critic: nn.Module, a: Tensor, b: Tensor, fake: Tensor) -> Tensor:
        with torch.enable_grad():
            b = b.requires_grad_()
            (weight,) = torch.autograd.grad(self.options.loss.generator(a, b).sum(), b)
            training = critic.training
            slope = squared_slope(critic.eval(), fake).detach().sqrt()  # no statistics move
            critic.train(training)
        return (weight.abs() * slope).mean()


def spread(x: Tensor) -> Tensor:
    """Return the mean distance of each image from the next of the batch."""
    x = x.detach()
    return (x - x.roll(1, 0)).flatten(1).norm(dim=1).mean() / math.sqrt(x[0].numel())


def modes(probabilities: Tensor) -> dict[str, Tensor]:
    """Count the classes that samples show, and those samples that show none.

    Args:
        probabilities: Of the classes, (n, K).
    Returns:
        `modes`: classes with a tenth of an even share of the sure samples; `unsure`: the share of
        samples with no class above .9.
    """
    highest, which = probabilities.max(1)
    sure = highest > SURE
    counts = torch.bincount(which[sure], minlength=probabilities.shape[1])
    least = SHARE * counts.sum() / probabilities.shape[1]
    found = (counts >= least.clamp(min=1)).sum()
    return {"modes": found.float(), "unsure": 1 - sure.float().mean()}
