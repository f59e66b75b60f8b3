"""Remake every picture of the docs, then their tables and the figures quoted in them.

    python docs/make.py [--full] [--only NAME ...] [--list]

or `make figures`, which names the data by variables: `make figures MNIST=... CATS=... MODELS=...
FASHION=... CHROMIUM=...`, folders of MNIST, of the cats, of the feature networks, of
Fashion-MNIST, and the browser. A command whose data is not named is left out, with a line that
says so. `--full` (`make figures FULL=1`) also repeats the benchmarks behind the CSVs, hours of a
core; without it, tables are rendered from the CSVs that are there. Each command runs in an empty
folder, OUT; what it makes is moved to where the pages show it.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from gallery import gallery
from PIL import Image
from tables import render

from genprior.figures.registry import FIGURES as REGISTRY

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


class Command(NamedTuple):
    """A shell line, where each file that it makes in OUT belongs, and whether it takes long."""

    line: str
    makes: dict[str, str]
    long: bool = False


GUIDES, RESULTS = "docs/guides/pictures", "docs/results"
LATENT, GAN = f"{GUIDES}/latent", f"{GUIDES}/gan"
FIGURES = "docs/pictures/figures"
LARGEST = 400_000
"""Bytes that a picture may take."""

SECONDS = ROOT / FIGURES / "seconds.csv"
"""What a figure costs in seconds of a core, which its command measures."""

IMAGES = "python benchmarks/images.py {prior} --data {data} --features $MODELS --bf16 --images 10"


def sample(name: str, number: int) -> Command:
    line = f"genprior sample {name} --number {number} --out OUT/{name}.png"
    return Command(line + " --columns 8" * (number % 8 == 0), {f"{name}.png": GUIDES})


def images(prior: str, data: str, parts: str = "") -> Command:
    line = IMAGES.format(prior=prior, data=data) + parts + " --out OUT"
    name = prior.removesuffix("-diffusion")
    return Command(line, {"images.csv": f"{RESULTS}/images/{name}.csv"}, long=True)


def figure(name: str, data: str = "", *, table: bool = True, to: str = GAN) -> Command:
    """A figure, and the CSV of its numbers if the page shows any."""
    makes = {f"{name}.png": to} | ({f"{name}.csv": f"{GAN}/numbers"} if table else {})
    return Command(f"genprior figure {name} {data}--out OUT", makes)


def trained(name: str) -> Command:
    """A figure that trains GANs of digits, minutes of a core, and the CSV of its numbers."""
    makes = dict.fromkeys((f"{name}.png", f"{name}.csv"), f"{GAN}/training")
    return Command(f"genprior figure {name} --data $MNIST --out OUT", makes)


def example(name: str, *, file: str = "", words: str = "") -> Command:
    """The picture of an example, which its docstring shows."""
    file = file or f"{name}.png"
    line = f"python examples/{name}.py {words}--out OUT/{file}"
    return Command(line, {file: "docs/pictures/examples"})


def tutorial(name: str, *files: str) -> Command:
    """The pictures of a tutorial, which its own Python draws."""
    line = f"python docs/site/notebooks.py --page {name} --out OUT"
    return Command(line, dict.fromkeys(files, "docs/tutorials/pictures"))


COMMANDS = {
    "truth": Command(
        "python benchmarks/truth.py --peers --only 1a 1b 1c 1d coverage pairs --out OUT",
        {"truth.csv": RESULTS},
        long=True,
    ),
    "laws": Command(
        "python benchmarks/laws.py --out OUT/laws.csv", {"laws.csv": RESULTS}, long=True
    ),
    "lens": Command(
        "python benchmarks/lens.py --data $MNIST --out OUT/lens.csv",
        {"lens.csv": RESULTS},
        long=True,
    ),
    "cats": images("cats32-diffusion", "$CATS", " --parts main peers pairs dps coverage"),
    "digits": images("mnist-diffusion", "$MNIST", " --parts main peers sweep pairs dps coverage"),
    "fashion": images(
        "fashion-diffusion", "$FASHION", " --parts main --solvers default MMPS DPS DDRM DAPS"
    ),
    "priors": Command(
        "python benchmarks/priors.py --data $MNIST --features $MODELS --out OUT",
        {"priors.png": "docs/pictures", "priors.csv": f"{RESULTS}/images"},
        long=True,
    ),
    "demo": Command(
        "genprior demo --out OUT",
        dict.fromkeys(("demo.png", "digit.png", "demo.csv"), "docs/pictures"),
    ),
    "readme": Command(
        "sed -n '/^```python/,/^```$/p' README.md | sed '1d;$d; s|restored.png|OUT/photo.png|' | "
        "python -",
        {"photo.png": "docs/pictures"},
    ),
    "app": Command(
        "python docs/site/screenshot.py --chromium $CHROMIUM --out OUT",
        {"app.png": "docs/pictures"},
    ),
    "own-photo": Command(
        "python examples/own_photo.py --out OUT",
        dict.fromkeys(("own-photo.png", "large-hole.png", "own-photo.csv"), GUIDES),
    ),
    "first-restoration": tutorial("first-restoration", "restored.png"),
    "choose": tutorial("choose-a-prior-and-solver", "families.png"),
    "train": tutorial("train-on-your-images", "samples.png", "bricks.png"),
    "trust": tutorial("trust-the-spread", "trust.png"),
    "latent": tutorial("solve-in-latent-space", "latent.png"),
    "diffusion-process": example("diffusion_process"),
    "gaussian-images": example("gaussian_images", words="cats64-gaussian "),
    "mixture-em": example("mixture_em"),
    "texture": example("texture", file="texture.jpg"),
    "sample-cats": sample("cats32-diffusion", 32),
    "sample-large-cats": sample("cats64-diffusion", 32),
    "sample-digits": sample("mnist-diffusion", 36),
    "sample-fashion": sample("fashion-diffusion", 36),
    "sample-vae": sample("cats32-vae", 32),
    "hierarchy": Command("genprior figure hierarchy --out OUT", {"hierarchy.png": GUIDES}),
    "csgm": Command(
        "python benchmarks/details/csgm.py --data $MNIST --out OUT",
        dict.fromkeys(("csgm.png", "csgm.csv"), LATENT),
    ),
    "csgm-gan": Command(
        "python benchmarks/details/csgm.py --data $MNIST --gan mnist-gan --out OUT",
        {"csgm-gan.png": f"{GAN}/csgm.png", "csgm-gan.csv": f"{GAN}/numbers/csgm.csv"},
    ),
    "densities": Command(
        "genprior figure densities --out OUT",
        dict.fromkeys(("densities.png", "densities.csv"), LATENT),
    ),
    "masks": Command("genprior figure masks --out OUT", {"masks.png": LATENT}),
    "temperatures": Command(
        "genprior figure temperatures --out OUT", {"temperatures.png": LATENT}
    ),
    "paths": Command("genprior figure paths --data $MNIST --out OUT", {"paths.png": LATENT}),
    "measurements": Command(
        "genprior figure measurements --data $MNIST --out OUT",
        dict.fromkeys(("measurements.png", "measurements.csv"), LATENT),
    ),
    "gamma": Command(
        "genprior figure gamma --data $MNIST --out OUT",
        dict.fromkeys(("gamma.png", "gamma.csv"), LATENT),
    ),
    "flows": Command(
        "python benchmarks/details/flows.py --mnist $MNIST --fashion $FASHION --cats $CATS "
        "--out OUT",
        dict.fromkeys(
            ("bits.csv", "speed.csv", "map.csv", "posterior.csv"), f"{RESULTS}/priors/flows"
        ),
        long=True,
    ),
    "modes": Command(
        "python benchmarks/details/modes.py --out OUT",
        {"modes.png": GAN, "modes.csv": f"{GAN}/numbers"},
        long=True,
    ),
    "inversion": Command(
        "python benchmarks/details/priors/inversion.py mnist-gan --data $MNIST "
        "--out OUT/inversion.csv",
        {"inversion.csv": f"{RESULTS}/images"},
        long=True,
    ),
    **{name: trained(name) for name in ("epochs", "budget", "stacked", "styles")},
    "codes": figure("codes", "--data $MNIST ", table=False, to=FIGURES),
    "manifold": figure("manifold", table=False, to=FIGURES),
    "collapse": figure("collapse", "--data $MNIST ", table=False, to=FIGURES),
    "clipping": figure("clipping"),
    "critics": figure("critics"),
    "shares": figure("shares", "--data $MNIST "),
    "between": figure("between", table=False),
    "neighbours": figure("neighbours", "--data $MNIST "),
    "arithmetic": figure("arithmetic", "--data $MNIST "),
    "truncation": figure("truncation", "--data $MNIST "),
    "truth-pictures": Command(
        "python benchmarks/truth.py --draw docs/results/truth.csv --out OUT",
        {"truth.png": f"{RESULTS}/pictures", "ranks.png": GUIDES},
    ),
    "images-pictures": Command(
        IMAGES.format(prior="cats32-diffusion", data="$CATS") + " --parts pictures --out OUT",
        {
            "box.png": f"{RESULTS}/pictures/images-box.png",
            "deblur-motion.png": f"{RESULTS}/pictures/images-deblur-motion.png",
        },
    ),
}


def run(name: str, command: Command) -> None:
    """Run a command and move what it made, unless its data is not named."""
    missing = [v for v in re.findall(r"\$([A-Z]+)", command.line) if not os.environ.get(v)]
    if missing:
        print(f"{name}: left out, {' and '.join(missing)} is not named", flush=True)
        return
    print(f"{name}: {command.line}", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    modules = f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": modules}
    with tempfile.TemporaryDirectory() as out:
        line = command.line.replace("OUT", out)
        before = _spent()
        subprocess.run(line, shell=True, check=True, cwd=ROOT, env=environment)
        if found := re.match(r"genprior figure (\w+)", line):
            note_seconds(found[1], _spent() - before)
        for file, target in command.makes.items():
            shutil.move(lighter(Path(out) / file), place(file, target))


def lighter(file: Path) -> Path:
    """Give a PNG that takes too much room in a repository 64 colours."""
    if file.suffix == ".png" and file.stat().st_size > LARGEST:
        Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)
    return file


def _spent() -> float:
    """Seconds of processor time that commands have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def note_seconds(figure: str, seconds: float) -> None:
    """Write what a figure took beside what the others did."""
    with SECONDS.open(newline="") as file:
        known = {row["figure"]: row["seconds"] for row in csv.DictReader(file)}
    known[figure] = f"{seconds:.0f}"
    with SECONDS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("figure", "seconds"), *known.items()])


def pictures() -> dict[str, Path]:
    """Where each figure's picture lies, as seen from docs/."""
    made = [item for command in COMMANDS.values() for item in command.makes.items()]
    return {
        file.removesuffix(".png"): place(file, target).relative_to(ROOT / "docs")
        for file, target in made
        if file.removesuffix(".png") in REGISTRY
    }


def rendered(page: Path) -> str:
    """Return what a page should say, its tables, figures in sentences and gallery anew."""
    text = render(page, page.read_text())
    return gallery(text, REGISTRY, pictures(), SECONDS) if page.name == "gallery.md" else text


def place(file: str, target: str) -> Path:
    """Where a file belongs: in a folder under its own name, or under another."""
    path = ROOT / target
    return path if path.suffix else path / file


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the benchmarks behind the CSVs too")
    parser.add_argument("--only", nargs="*", choices=COMMANDS, help="these; none: tables alone")
    parser.add_argument("--list", action="store_true", help="say what is made, and stop")
    options = parser.parse_args()
    names = [n for n, c in COMMANDS.items() if options.full or not c.long]
    for name in names if options.only is None else options.only:
        command = COMMANDS[name]
        if options.list:
            made = (str(place(*item).relative_to(ROOT)) for item in command.makes.items())
            print(f"{', '.join(made)}\n    {command.line}")
        else:
            run(name, command)
    for page in [] if options.list else PAGES:
        page.write_text(rendered(page))


if __name__ == "__main__":
    main()
