"""Images: data sets from wherever they are kept, and single files."""

from genprior.data.datasets import ArrayImages, FileImages, Images, from_array, images, resized
from genprior.data.files import read_image, write_image

__all__ = [
    "ArrayImages",
    "FileImages",
    "Images",
    "from_array",
    "images",
    "read_image",
    "resized",
    "write_image",
]
