"""Make the tree that travels to a machine with a GPU and no registry; print what to run there.

    PYTHONPATH=.:benchmarks python -m gpu.prepare --data FOLDER --models FOLDER [--keep NAME ...]
    PYTHONPATH=.:benchmarks python -m gpu.prepare --back

Training and test images, feature networks and wheels are gathered in .carry/, which git ignores,
and shipped weights leave the tree (`git sparse-checkout`) but for those to `--keep`; `--back`
brings them back. What travels may weigh 64 MiB; MobileNet comes along where it fits. The packages
are taken from the tree itself, so that there is no wheel of genprior.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from common.features import FILES
from gpu import lease
from packaging.requirements import Requirement

LIMIT = 64 * 2**20
"""Bytes that travel."""

COMMAND = 2000
"""Characters of a command."""

PRESENT = {
    "numpy", "scipy", "pillow", "matplotlib", "tqdm", "torch", "torchvision", "scikit-image",
    "einops", "h5py", "torchmetrics", "safetensors", "peft", "transformers", "pytest",
    "pytest-xdist", "hypothesis", "tensorboard", "requests", "fsspec", "packaging", "zipp",
    "typing-extensions", "filelock", "huggingface-hub", "regex", "pyyaml", "tifffile",
}  # fmt: skip
"""What the machine has."""

WHEELS = (
    "deepinv", "natsort", "lightning-fabric", "lightning-utilities", "jsonargparse",
    "docstring-parser", "typeshed-client", "diffusers", "importlib-metadata", "lazy-importer",
)  # fmt: skip
"""What it lacks."""

INSTALL = (
    "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade "
    f"--target /tmp/site {lease.CARRY}/wheels/*.whl"
)
START = "set -o pipefail; export PYTHONPATH=/tmp/site:.:benchmarks PYTHONUNBUFFERED=1; "


def commands(name: str) -> list[str]:
    """Return the two commands, the second for the machine while it is still warm."""
    return [
        f"{START}{INSTALL} && python3 -m gpu.train {name} --seconds 480 --run /tmp/run "
        '--out "$OUT" 2>&1 | tee "$OUT/train.log"',
        f"{START}[ -d /tmp/site ] || {INSTALL}; [ -f /tmp/run/prior.safetensors ] && "
        "trained='--weights /tmp/run/prior.safetensors'; "
        'python3 -m gpu.measure $trained --seconds 150 --out "$OUT" 2>&1 | tee "$OUT/measure.log"',
    ]


def git(root: Path, *words: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"git {' '.join(words)}: {run.stderr.strip()}")
    return run.stdout


def leave_weights_out(root: Path, keep: Sequence[str]) -> None:
    """Take the shipped weights out of the tree, but for those named.

    Raises:
        SystemExit: A name that no weights have, or git refuses.
    """
    shipped = {Path(p).stem for p in git(root, "ls-files", "pretrained/*.safetensors").split()}
    if unknown := sorted(set(keep) - shipped):
        raise SystemExit(f"--keep {' '.join(unknown)}: there are {', '.join(sorted(shipped))}")
    kept = [f"/pretrained/{name}.safetensors" for name in keep]
    git(root, "sparse-checkout", "set", "--no-cone", "/*", "!/pretrained/*.safetensors", *kept)


def gather(carry: Path, names: Sequence[str], *, data: Path, models: Path) -> None:
    """Copy the images of recipes, cats to test on, and the feature networks for them.

    Raises:
        SystemExit: A file is not there.
    """
    tar, idx = ("*train*.tar", "*_test.npz"), ("train-images*", "t[19]*-images*")
    sources = [("data", data, ("cats64", "*_test.npz"))]
    for own in {lease.source(name) for name in names}:
        sources += [("data", data, (own, p)) for p in (tar if own == "cats64" else idx)]
        sources.append(("models", models, FILES["alexnet" if own == "cats64" else "lenet"]))
    for kind, folder, part in sources:
        pattern = str(Path(*part))
        if not (found := sorted(folder.glob(pattern))):
            raise SystemExit(f"{folder} holds no {pattern}")
        for path in found:
            _copy(path, carry / kind, folder)


def _copy(path: Path, into: Path, root: Path) -> None:
    place = into / path.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def wheels(folder: Path, without: Sequence[str]) -> None:
    """Download what the machine lacks, but for some; say what else that would need.

    Raises:
        SystemExit: A requirement that the machine does not have either.
    """
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (28, 17)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    pip += ["--python-version=3.12", "--implementation=cp", *platforms, "-d", str(folder)]
    subprocess.run([*pip, *(w for w in WHEELS if w not in without)], check=True)
    for path in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(path) as archive:
            about = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            text = archive.read(about).decode()
        for line in re.findall(r"^Requires-Dist: (.*)", text, re.MULTILINE):
            need = Requirement(line)
            wanted = need.marker is None or need.marker.evaluate(
                {"python_version": "3.12", "extra": ""}
            )
            plain = re.sub(r"[-_.]+", "-", need.name).lower()
            if wanted and plain not in PRESENT | {*WHEELS}:
                raise SystemExit(f"{path.name} needs {line}: add it to WHEELS")


def travelling(root: Path, carry: Path) -> dict[Path, int]:
    """Return the size of all that travels: files of the tree that are there, and the carried."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    paths = {root / name for name in listed if name} | {*carry.rglob("*")}
    return {p: p.lstat().st_size for p in paths if p.is_file() or p.is_symlink()}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the tree that travels to a lent GPU.")
    parser.add_argument("--data", type=Path, help="holds cats64/, mnist/, fashion_mnist/")
    parser.add_argument("--models", type=Path, help="holds the feature networks")
    parser.add_argument(
        "--name", nargs="+", default=["cats64-diffusion"], help="the recipes to train"
    )
    parser.add_argument("--without", nargs="*", default=[], help="wheels that stay here")
    parser.add_argument("--keep", nargs="*", default=[], help="shipped weights that go along")
    parser.add_argument("--back", action="store_true", help="bring all weights back")
    parser.add_argument("--tree", type=Path, default=lease.ROOT)
    parser.add_argument("--dry-run", action="store_true", help="download no wheels")
    given = parser.parse_args(words)
    if given.back:
        print(git(given.tree, "sparse-checkout", "disable"), end="")
        return
    if given.data is None or given.models is None:
        raise SystemExit("say where --data and --models are")
    carry = given.tree / lease.CARRY
    shutil.rmtree(carry, ignore_errors=True)
    leave_weights_out(given.tree, given.keep)
    gather(carry, given.name, data=given.data, models=given.models)
    if not given.dry_run:
        wheels(carry / "wheels", given.without)
    sizes = travelling(given.tree, carry)
    extra = given.models / Path(*FILES["mobilenet"])
    if extra.exists() and sum(sizes.values()) + extra.stat().st_size < 0.98 * LIMIT:
        _copy(extra, carry / "models", given.models)
        sizes = travelling(given.tree, carry)
    total = sum(sizes.values())
    for path, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"{size / 2**20:8.2f} MiB  {path.relative_to(given.tree)}")
    print(f"{total / 2**20:8.2f} MiB  of {LIMIT / 2**20:.0f}, {len(sizes)} files travel")
    if total > LIMIT:
        raise SystemExit("too much travels: keep fewer weights; --back restores them")
    for command in commands(given.name[0]):
        assert len(command) < COMMAND
        print(f"\nwith {lease.CARRY} carried, {len(command)} characters:\n{command}")


if __name__ == "__main__":
    main()
