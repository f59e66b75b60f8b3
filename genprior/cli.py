"""The shell: every command is a function, its options are the function's parameters."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import io
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from genprior.commands.refusals import in_words, naming, refuse_empty
from genprior.data.limits import option, refuse_outside


class Command(NamedTuple):
    """Where in genprior a command's function is; which parameters need no option's name."""

    about: str
    function: str
    positional: tuple[str, ...] = ()


COMMANDS = {
    "restore": Command("restore a photo", "commands.restore:restore", ("photo",)),
    "train gaussian": Command("fit a Gaussian to images", "commands.fit:fit_gaussian"),
    "train mixture": Command("fit a mixture of Gaussians", "commands.fit:fit_mixture"),
    "train texture": Command("fit a texture to one image", "commands.fit:fit_texture"),
    "train diffusion": Command("train a diffusion prior", "commands.train:train_diffusion"),
    "train vae": Command("train a variational autoencoder", "commands.train:train_vae"),
    "train hvae": Command("train a hierarchical one", "commands.train:train_hvae"),
    "train autoencoder": Command("train an autoencoder", "commands.train:train_autoencoder"),
    "train nice": Command("train a flow of additive couplings", "commands.train:train_nice"),
    "train realnvp": Command("train a flow of affine couplings", "commands.train:train_realnvp"),
    "train glow": Command("train a Glow", "commands.train:train_glow"),
    "train gan": Command("train a generator against a critic", "commands.train:train_gan"),
    "sample": Command("draw from a prior", "commands.listing:sample", ("name",)),
    "priors": Command("list the priors installed", "commands.listing:priors"),
    "solvers": Command("list the solvers", "commands.listing:solvers"),
    "evaluate": Command("score a prior and a solver on many images", "commands.evaluate:evaluate"),
    "app": Command("serve a page on which photos are restored", "app.command:app"),
    "figure": Command("reproduce a figure", "figures.registry:figure", ("name",)),
    "demo": Command("restore a cat and a digit with every prior for them", "commands.demo:demo"),
}

USER_ERRORS = (ArgumentError, ValueError, TypeError, OSError, MemoryError, ArithmeticError)
"""What a wrong input can raise; anything else is a fault of ours and keeps its traceback."""


class _Parser(ArgumentParser):
    """Shows options as they are typed: --batch-size, and flags without a value."""

    def format_help(self) -> str:
        return _hyphens(super().format_help()).replace(" {true,false}", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `genprior`; those of the process if None.
    Returns:
        The exit status: 0, 1 where photos of a folder failed, 2 for a wrong input (one line on
        stderr says which), 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = _run(words)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _drop_output()
        return 0
    except USER_ERRORS as error:
        print(f"genprior: error: {_one_line(error)}", file=sys.stderr)
        _drop_output()
        return 2
    except KeyboardInterrupt:
        print("genprior: interrupted", file=sys.stderr)
        return 130


def _open_streams() -> None:
    """Make output that was closed go nowhere, and what a terminal cannot show be escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Forget output that cannot be written: Python would try again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--import":  # a module with families of one's own
        from genprior.commands.train import import_own

        import_own(" ".join(words[1:2]), "--import")
        return _run(words[2:])
    if words[0] == "--version":
        from genprior import __version__

        print(__version__)
        return 0
    name, rest = _split(words)
    if name in COMMANDS:
        function, positional = _load(COMMANDS[name]), COMMANDS[name].positional
    else:
        from genprior.commands.train import find_family, trainer

        function, positional = trainer(find_family(name.split()[1])), ()
    parser, groups, flags, kinds = _parser(name, function, positional)
    if "-h" in rest or "--help" in rest:
        print(parser.format_help())
        return 0
    try:
        parsed = parser.parse_args(_typed(rest, flags))
    except ArgumentError as error:
        raise ValueError(in_words(error, kinds)) from error
    parsed.pop("config", None)
    refuse_empty(parsed.as_dict())
    refuse_outside(parsed.as_dict(), said=option)
    named = {key: value for key, value in parsed.as_dict().items() if key not in positional}
    try:
        values = parser.instantiate(parsed).as_dict()
        for key, kind in groups.items():
            values[key] = kind(**{f.name: values.pop(f.name) for f in dataclasses.fields(kind)})
        done = function(**values)
    except USER_ERRORS as error:
        raise ValueError(naming(_one_line(error), named)) from error
    return done if isinstance(done, int) else 0


def _split(words: list[str]) -> tuple[str, list[str]]:
    """Take the command, of one or two words, off the front."""
    two = " ".join(words[:2])
    if two in COMMANDS:
        return two, words[2:]
    if words[0] in COMMANDS:
        return words[0], words[1:]
    if words[0] == "train" and re.match(r"[A-Z]|.+:", " ".join(words[1:2])):  # one's own family
        return two, words[2:]
    families = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if families:
        own = ", or MODULE:CLASS of your own" * (words[0] == "train")
        raise ValueError(f"genprior {words[0]} what? {', '.join(families)}{own}")
    near = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else "genprior --help lists them"
    raise ValueError(f"there is no command {words[0]!r}: {hint}")


def _load(command: Command) -> Callable[..., object]:
    module, _, function = command.function.partition(":")
    return getattr(importlib.import_module(f"genprior.{module}"), function)


def _parser(
    name: str, function: Callable[..., object], positional: tuple[str, ...]
) -> tuple[_Parser, dict[str, type], set[str], dict[str, Any]]:
    """Make the parser of a function.

    A parameter before the `*` that is a dataclass spreads into its fields.

    Returns:
        The parser, those parameters, the options that are flags, and the type of each option.
    """
    about = (inspect.getdoc(function) or "").split("\nArgs:")[0].strip()
    parser = _Parser(prog=f"genprior {name}", description=about, exit_on_error=False)
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    groups = {
        p.name: hints[p.name]
        for p in parameters
        if p.kind is p.POSITIONAL_OR_KEYWORD and dataclasses.is_dataclass(hints[p.name])
    }
    for word in positional:
        default = inspect.signature(function).parameters[word].default
        optional = {} if default is inspect.Parameter.empty else {"nargs": "?", "default": default}
        parser.add_argument(word, type=hints[word], **optional)
    if len(parameters) > len(positional):
        parser.add_argument("--config", action="config", help="YAML file, or a prior's name")
    for key, kind in groups.items():
        parser.add_class_arguments(kind, as_group=True)
        default = inspect.signature(function).parameters[key].default
        if default is not inspect.Parameter.empty:
            parser.set_defaults(dict(vars(default)))
    parser.add_function_arguments(function, skip={*groups, *positional}, as_group=False)
    fields = [(f.name, f.default) for kind in groups.values() for f in dataclasses.fields(kind)]
    fields += [(p.name, p.default) for p in parameters]
    maybe = {p.name for p in parameters if hints[p.name] == (bool | None)}
    flags = maybe | {key for key, value in fields if isinstance(value, bool)}
    for group in groups.values():
        hints = hints | typing.get_type_hints(group)
    return parser, groups, flags, hints


def _typed(words: list[str], flags: set[str]) -> list[str]:
    """Turn what is typed into what the parser reads: --skip-bad into --skip_bad=true."""
    from genprior.pretrained.loader import find_recipe

    out = []
    for before, word, following in zip(["", *words], words, [*words[1:], ""], strict=False):
        if before == "--config":
            word = find_recipe(word)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            value = find_recipe(value) if name == "config" else value
            if name in flags and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
            word = f"--{name}{equals}{value}"
        out.append(word)
    return out


def _overview() -> str:
    lines = ["genprior: imaging inverse problems solved with generative priors", ""]
    lines += [f"  genprior {name:16} {command.about}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "genprior COMMAND --help explains a command.",
        "genprior train MODULE:CLASS trains a family of your own; other commands know it where",
        "genprior --import MODULE COMMAND is called.",
    ]
    return "\n".join(lines)


def _hyphens(text: str) -> str:
    return re.sub(r"--[a-z][a-z_.]*", lambda match: match[0].replace("_", "-"), text)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return _hyphens(" ".join(str(error).split())) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"genprior: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
