"""The figures that need no data, and the parts of those that do."""

import gzip

import pytest
import torch

from genprior import cli
from genprior.data import read_image
from genprior.figures.canvas import classes
from genprior.figures.inverse import cosine_basis, lasso, pose
from genprior.figures.registry import FIGURES


def test_every_figure_is_listed(capsys):
    """Catches a figure that --list does not name, or a name that is made compulsory."""
    assert cli.main(["figure", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in FIGURES)


def test_manifold_is_drawn_and_not_overwritten(tmp_path, capsys):
    """Catches a picture that replaces another, or is empty."""
    assert cli.main(["figure", "manifold", "--out", str(tmp_path)]) == 0
    assert read_image(tmp_path / "manifold.png").std() > 0.1
    assert cli.main(["figure", "manifold", "--out", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [(["unknown"], "choose one of codes"), ([], "no figure was named"), (["codes"], "--data")],
)
def test_wrong_requests_say_what_to_do(words, says, tmp_path, capsys):
    """Catches a traceback, or a file written, where a line would do."""
    assert cli.main(["figure", *words, "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_lasso_finds_a_sparse_image():
    """Catches a Lasso of another scale than the measurements, or cosines that are no basis."""
    pytest.importorskip("sklearn")
    basis = cosine_basis()
    torch.testing.assert_close(basis.T @ basis, torch.eye(784, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    c = torch.zeros(784, dtype=torch.float64)
    c[torch.randperm(784, generator=generator)[:5]] = 3.0
    x = (basis @ c).view(1, 1, 28, 28).float()
    found = lasso(pose(x, 200), basis, weight=0.01)
    assert (found - x.flatten(1)).square().mean() < 0.01 * x.square().mean()


def test_classes_of_digits_are_read(tmp_path):
    """Would catch codes coloured by another digit's class, or a crash where none are known."""
    content = bytes([0, 0, 8, 1, 0, 0, 0, 4, 7, 2, 1, 0])
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content[:8] + b"\5\6"))
    assert classes(str(tmp_path), "test", 3).tolist() == [7, 2, 1]
    assert classes(str(tmp_path), "train", 2).tolist() == [5, 6]
    assert classes(str(tmp_path / "none"), "test", 3) is None
