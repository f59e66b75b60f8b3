"""Weights on the Hugging Face hub: hf://OWNER/NAME[@REVISION][/FILE]; and their card."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SCHEME = "hf://"

WEIGHTS = "prior.safetensors"
"""The file that is meant where none is named."""

LOG_IN = "log in (`hf auth login`), or set HF_TOKEN"


class _Public(Exception):
    """A repository that was to be private is there, and public."""


class Reference(NamedTuple):
    """What an hf:// name says."""

    repository: str
    revision: str | None
    file: str

    @classmethod
    def parse(cls, name: str) -> Reference:
        """Read hf://OWNER/NAME[@REVISION][/FILE].

        Raises:
            ValueError: It has another form, or the file is no .safetensors.
        """
        part = r"[\w.-]+"
        revision = rf"refs/\w+/{part}|{part}"
        found = re.fullmatch(
            rf"hf://({part}/{part})(?:@({revision}))?(?:/({part}(?:/{part})*))?", name
        )
        if found is None or ".." in name:
            raise ValueError(f"{name}: write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION/FILE")
        file = found[3] or WEIGHTS
        if not file.endswith(".safetensors"):
            raise ValueError(f"{name}: only .safetensors files are read: others may run code")
        return cls(found[1], found[2], file)


def fetch(name: str) -> Path:
    """Return the local copy of an hf:// file, fetched if the hub has another than the cache.

    Without a network, or with HF_HUB_OFFLINE=1, it is the copy in the cache.

    Args:
        name: As `Reference.parse` reads it.
    Raises:
        ValueError: The extra is missing, there is no such repository, revision or file, access to
            it is refused, or there is neither a network nor a copy.
    """
    hub, wanted = _library(name), Reference.parse(name)

    def download() -> str:
        return hub.hf_hub_download(
            wanted.repository,
            wanted.file,
            revision=wanted.revision,
            library_name="genprior",
            endpoint=os.environ.get("HF_ENDPOINT"),
        )

    return Path(_in_words(name, download))


def push(
    save: Callable[[Path], None],
    repository: str,
    *,
    header: Mapping[str, Any],
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Make a repository if there is none, and put weights and a model card into it.

    Args:
        save: Writes the weights to a path.
        repository: OWNER/NAME.
        header: What the weights file says of itself; the card is made of it.
        private: Of a repository that is new; as its owner has it by default if None.
        revision: Branch to write to, which must be there; the main one if None.
    Returns:
        The address of the commit.
    Raises:
        ValueError: The extra is missing, the name is none, access is refused, nobody answers, or
            the repository was to be private and is there and public.
    """
    name = f"{SCHEME}{repository}"
    hub = _library(name)
    if Reference.parse(name).repository != repository:
        raise ValueError(f"{repository}: write OWNER/NAME")
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / WEIGHTS)
        Path(folder, "README.md").write_text(model_card(repository, header), encoding="utf-8")

        def upload() -> str:
            api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="genprior")
            api.create_repo(repository, private=private, exist_ok=True)
            if private and not api.model_info(repository).private:
                raise _Public
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message=f"Add a {header['family']} of genprior",
            )
            return str(done.commit_url)

        return _in_words(name, upload)


def model_card(repository: str, header: Mapping[str, Any]) -> str:
    """Write the README.md of a repository: YAML front matter, how to load, what the card says.

    Args:
        repository: OWNER/NAME.
        header: family, config and card, as in a weights file.
    """
    family, about = header["family"], dict(header["card"])
    tags = json.dumps(["genprior", "inverse-problems", "image-restoration", family.lower()])
    licence = about.pop("licence", None)
    lines = ["---", "library_name: genprior", f"tags: {tags}"]
    if licence is not None:
        known = re.fullmatch(r"[a-z]+[a-z0-9.+-]*\d?", str(licence)) is not None
        lines.append(f"license: {licence if known else 'other'}")
        lines += [] if known else [f"license_name: {json.dumps(str(licence))}"]
    shape = header["config"].get("image_shape")
    lines += ["---", "", f"# {repository.partition('/')[2]}", ""]
    lines.append(f"A prior of images for [genprior](https://pypi.org/project/genprior): {family}.")
    if shape is not None:
        sides = " x ".join("any" if n is None else str(n) for n in shape)
        lines.append(f"Its images are {sides} (channels x height x width), pixels in [0, 1].")
    lines += ["", "```python", "import genprior", ""]
    lines += [f'prior = genprior.load("{SCHEME}{repository}")', "```", ""]
    lines += [f"    genprior restore photo.png --task denoise --prior {SCHEME}{repository}", ""]
    about = {**about, **({} if licence is None else {"licence": licence})}
    if about:
        lines += ["## What the weights file says of itself", "", *_listed(about), ""]
    return "\n".join(lines)


def _listed(about: Mapping[str, Any], indent: str = "") -> list[str]:
    """A nested list of plain data."""
    lines = []
    for key, value in about.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}", *_listed(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {key}: {value}")
    return lines


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(f'{name} needs huggingface_hub: pip install "genprior[hub]"') from error
    return huggingface_hub


def _in_words(name: str, work: Callable[[], str]) -> str:
    """Do what asks a hub, and say in one line what went wrong.

    Raises:
        ValueError: Anything did.
    """
    from huggingface_hub import errors

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # it would warn of each of its tries
    try:
        return work()
    except _Public as error:
        reason, cause = "the repository is there and public: nothing was sent", error
    except errors.GatedRepoError as error:
        reason, cause = "its owner has not given you access to it", error
    except errors.RepositoryNotFoundError as error:
        reason, cause = f"no such repository, or a private one: {LOG_IN}", error
    except errors.RevisionNotFoundError as error:
        reason, cause = "the repository has no such revision", error
    except errors.LocalEntryNotFoundError as error:
        reason, cause = "the hub cannot be reached, and the cache has no copy of this file", error
    except errors.EntryNotFoundError as error:
        said = f"hf://OWNER/NAME/FILE names another than {WEIGHTS}"
        reason, cause = f"the repository has no such file; {said}", error
    except errors.HFValidationError as error:
        reason, cause = f"no name of a repository ({_line(error)})", error
    except errors.HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        reason, cause = f"access is refused: {LOG_IN}" if refused else _line(error), error
    except Exception as error:  # of the network: which library speaks HTTP differs by version
        kind = type(error).__name__
        reason, cause = f"the hub cannot be reached ({kind}: {_line(error)})", error
    finally:
        log.setLevel(level)
    raise ValueError(f"{name}: {reason}") from cause


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
