"""Images: data sets from wherever they are kept, and single files."""

from genprior.data.datasets import ArrayImages, FileImages, Images, from_array, images, resized
from genprior.data.files import Photo, read_image, read_photo, write_image

__all__ = [
    "ArrayImages",
    "FileImages",
    "Images",
    "Photo",
    "from_array",
    "images",
    "read_image",
    "read_photo",
    "resized",
    "write_image",
]
