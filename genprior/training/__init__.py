"""One training loop for every trainable family."""

from genprior.training.augmentation import Augmentation
from genprior.training.loop import train
from genprior.training.options import TrainingOptions

__all__ = ["Augmentation", "TrainingOptions", "train"]
