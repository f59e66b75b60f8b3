"""What the shell's options say of the images to train and evaluate on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from genprior.data import Images, images
from genprior.operators.files.picture import Range


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes:
        data: A folder of images, a tar, .npz, .npy or idx file, a folder that holds one of these,
            or the name of a torchvision data set.
        size: Height and width; images are cropped in the middle and resized.
        channels: 1 or 3, if images are to be converted.
        split: Which set, train or test, where the source has both; train to train, test to
            evaluate.
        upscale: Enlarge smaller images instead of refusing them.
        skip_bad: Go on without unreadable images and report them at the end.
        value_range: The values that are black and white, as 0,4095 for 12 bits in 16; auto: the
            least and the largest of each image, or of a whole array.
    """

    data: str
    size: int | tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    split: Literal["train", "test"] | None = None
    upscale: bool = False
    skip_bad: bool = False
    value_range: str | None = None

    def __post_init__(self) -> None:
        parsed_range(self.value_range)

    def open(self, *, split: str = "train") -> Images:
        """Open the data set; `split` is taken where the user did not ask for one."""
        return images(
            self.data,
            size=self.size,
            channels=self.channels,
            split=self.split or split,
            upscale=self.upscale,
            skip_bad=self.skip_bad,
            value_range=parsed_range(self.value_range),
        )


def parsed_range(text: str | None) -> Range:
    """Read --value-range: LOW,HIGH or auto.

    Raises:
        ValueError: It is neither.
    """
    if text is None or text == "auto":
        return text
    try:
        low, high = (float(word) for word in text.strip("[]()").split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"--value-range must be auto, or LOW,HIGH that rises, not {text}")
    return low, high
