"""Images in: every format and source gives the same pixels; what cannot be read is named."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from genprior.data import FileImages, images, read_image, resized, write_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)


def expected(array):
    """(H, W, C) uint8 to what a reader should give."""
    return torch.tensor(array.transpose(2, 0, 1) / 255, dtype=torch.float32)


@pytest.fixture
def folder(tmp_path):
    """Six colour PNG of 12x10 pixels, and their pixels."""
    stack = RNG.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
    place = tmp_path / "photos"
    place.mkdir()
    for i, image in enumerate(stack):
        Image.fromarray(image).save(place / f"{i}.png")
    return place, stack


def test_alpha_is_laid_on_white(tmp_path):
    """Would catch alpha dropped by cutting the channel, which shows hidden colours."""
    alpha = np.dstack([COLOUR, np.full((12, 10), 51, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "a.png")
    want = 0.2 * expected(COLOUR) + 0.8
    assert (read_image(tmp_path / "a.png") - want).abs().max() < 1 / 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_modes(tmp_path, mode):
    """Would catch palette indices read as grey levels, or CMYK read as RGBA."""
    image = Image.fromarray(COLOUR).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    want = np.asarray(image.convert("L" if mode in "1L" else "RGB")).reshape(12, 10, -1)
    torch.testing.assert_close(read_image(path), expected(want))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_survive(tmp_path, channels):
    """Would catch 16-bit files cut to 8 bits, on the way out or in."""
    x = torch.rand((channels, 9, 7), generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "a.png", x, bits=16)
    assert (read_image(tmp_path / "a.png") - x).abs().max() <= 0.51 / 65535
    write_image(tmp_path / "b.png", x)
    assert (read_image(tmp_path / "b.png") - x).abs().max() <= 0.51 / 255


def test_exif_orientation(tmp_path):
    """Would catch photos from a phone that come out lying on their side."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    want = expected(np.rot90(COLOUR, -1).copy())
    torch.testing.assert_close(read_image(tmp_path / "a.png"), want)


def test_write_refuses_then_replaces(tmp_path):
    """Would catch results overwritten unasked, and partial files left behind."""
    path = tmp_path / "a.png"
    write_image(path, torch.zeros(1, 4, 4))
    with pytest.raises(FileExistsError, match="--force"):
        write_image(path, torch.ones(1, 4, 4))
    assert read_image(path).max() == 0
    write_image(path, torch.ones(1, 4, 4), force=True)
    assert read_image(path).min() == 1
    with pytest.raises(ValueError, match="NaN"):
        write_image(tmp_path / "b.png", torch.full((1, 4, 4), torch.nan))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_sources_agree(folder, tmp_path):
    """Would catch axes swapped or images reordered in one of the containers."""
    place, stack = folder
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(place, arcname="any/name")
    np.save(tmp_path / "last.npy", stack)
    np.save(tmp_path / "first.npy", stack.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "a.npz", images=stack, labels=np.arange(6))
    want = torch.stack([expected(image) for image in stack])
    for source in (place, *(tmp_path / n for n in ("a.tar", "last.npy", "first.npy", "a.npz"))):
        data = images(source)
        torch.testing.assert_close(data.batch([4, 1]), want[[4, 1]])
        torch.testing.assert_close(data[5], want[5])
        assert len(list(data)) == 6


def test_idx_and_split(tmp_path):
    """Would catch the test file taken for the train file, or labels for images."""
    arrays = {"train": RNG.integers(0, 256, (5, 8, 8), dtype=np.uint8)}
    arrays["t10k"] = 255 - arrays["train"][:2]
    for name, array in arrays.items():
        header = b"\0\0\x08\x03" + struct.pack(">3I", *array.shape)
        with gzip.open(tmp_path / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + array.tobytes())
        labels = b"\0\0\x08\x01" + struct.pack(">I", len(array)) + bytes(len(array))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    train, test = images(tmp_path), images(tmp_path, split="test")
    assert (len(train), len(test), train.image_shape) == (5, 2, (1, 8, 8))
    torch.testing.assert_close(test[1], 1 - train[1])


def test_torchvision_by_name():
    """Would catch a torchvision data set whose images come as (image, label) or unconverted."""
    data = images("FakeData")
    assert isinstance(data, FileImages)
    assert len(data) == 1000
    assert data[3].shape == (3, 224, 224)
    assert 0.2 < data[3].mean() < 0.8


def test_crop_is_central_and_resize_antialiased():
    """Would catch a corner crop, and aliasing that turns a fine grating into stripes."""
    wide = np.zeros((1, 8, 24), np.uint8)
    wide[:, :, 8:16] = 200
    assert (resized(wide, (8, 8)) == 200).all()
    grating = np.tile(np.array([0, 255], np.uint8), (1, 64, 32))
    shrunk = resized(grating, (15, 15)).astype(float)
    assert np.abs(shrunk[:, 2:-2, 2:-2] - 127.5).max() < 8


def test_channels(folder):
    """Would catch grey made of one channel rather than luma, and mixed folders stacked."""
    place, stack = folder
    grey = images(place, channels=1)
    want = stack[0] @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(grey[0][0].numpy(), want, atol=0.51 / 255)
    Image.fromarray(stack[0, :, :, 0]).save(place / "grey.png")
    with pytest.raises(ValueError, match="1 images are grey and 6 in colour"):
        images(place, size=8)
    assert images(place, size=8, channels=3).image_shape == (3, 8, 8)


def test_too_small_unless_upscale(folder):
    """Would catch small images blown up silently."""
    with pytest.raises(ValueError, match=r"0\.png has 12x10 pixels.*16x16.*--upscale"):
        images(folder[0], size=16)
    assert images(folder[0], size=16, upscale=True).image_shape == (3, 16, 16)


def unreadable(kind, good):
    """The bytes of a broken PNG."""
    middle = len(good) // 2
    return {
        "empty": b"",
        "text": b"this is a letter, not a picture\n" * 9,
        "truncated": good[:middle],
        "damaged": good[: middle - 20] + bytes(40) + good[middle + 20 :],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [("empty", "0 bytes"), ("text", "it holds text"), ("truncated", ""), ("damaged", "")],
)
@pytest.mark.parametrize("deep", [False, True])
def test_unreadable_file(tmp_path, kind, says, deep):
    """Would catch an error without the file's name, or an image half grey from half a file."""
    path = tmp_path / "broken.png"
    write_image(path, torch.rand((3, 40, 40), generator=torch.Generator()), bits=16 if deep else 8)
    path.write_bytes(unreadable(kind, path.read_bytes()))
    with pytest.raises(ValueError, match=rf"broken\.png.*{says}"):
        read_image(path)


def test_one_bad_image_among_a_thousand(tmp_path):
    """Would catch a data set that dies without saying where, or loses images unreported."""
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "PNG")
    for i in range(1000):
        (tmp_path / f"{i:03d}.png").write_bytes(buffer.getvalue() if i != 617 else b"oops")
    with pytest.raises(ValueError, match=r"617\.png"):
        images(tmp_path, size=8)
    for size in (8, None):
        with pytest.warns(UserWarning, match=r"1 images left out:\n.*617\.png"):
            data = images(tmp_path, size=size, skip_bad=True)
        assert (len(data), len(data.skipped)) == (999, 1)
        assert "617.png" not in data.names


@pytest.mark.parametrize("kind", ["empty", "unreadable"])
def test_folder_without_images(tmp_path, kind):
    """Would catch an empty data set handed on to a training loop."""
    (tmp_path / "notes.md").write_text("no images here")
    if kind == "unreadable":
        (tmp_path / "a.png").write_text("no image either")
    with pytest.raises(ValueError, match=r"holds no images|no image that can be read"):
        images(tmp_path, size=8, skip_bad=True)


def test_arrays_out_of_range(tmp_path):
    """Would catch 0 ... 255 floats taken for 0 ... 1, and pickles loaded."""
    np.save(tmp_path / "a.npy", 255 * RNG.random((3, 8, 8)))
    with pytest.raises(ValueError, match=r"from .* to 2\d\d.*\[0, 1\]"):
        images(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"from .* to 2\d\d.*\[0, 1\]"):
        read_image(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"b\.npy|pickle"):
        images(tmp_path / "b.npy")


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "train-images-idx3-ubyte.gz", "a.tar"])
def test_truncated_containers(tmp_path, name):
    """Would catch a raw zlib or zip error, or fewer images than the header says."""
    path = tmp_path / name
    stack = RNG.integers(0, 256, (50, 8, 8), dtype=np.uint8)
    if name == "a.npz":
        np.savez_compressed(path, images=stack)
    elif name == "a.npy":
        np.save(path, stack)
    elif name == "a.tar":
        path.write_bytes(b"x" * 2000)
    else:
        header = b"\0\0\x08\x03" + struct.pack(">3I", *stack.shape)
        path.write_bytes(gzip.compress(header + stack.tobytes()))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        images(path)


def test_nothing_there(tmp_path):
    """Would catch a typing error in a path taken for something to download."""
    with pytest.raises(ValueError, match="no file, no folder and no torchvision data set"):
        images(tmp_path / "photso")
    with pytest.raises(ValueError, match="no file, no folder and no torchvision data set"):
        images("os")
