"""Pretrained priors: weights, their cards, and the loader."""

from genprior.pretrained.loader import available, card, load

__all__ = ["available", "card", "load"]
