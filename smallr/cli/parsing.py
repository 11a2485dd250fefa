"""Gives all commands one style of flags: `--flag=value`, and `--config.FIELD=VALUE` where a command has a config."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from smallr.cli import config_files, fields
from smallr.data.errors import nearest

_HELP = ("-h", "--help")
_FLAG = re.compile(r"--[A-Za-z][\w-]*")
_OVERRIDE = "--config."
_TRUE, _FALSE = ("true", "1", "yes", "t", "y"), ("false", "0", "no", "f", "n")


class UsageError(Exception):
    """Says that a command line cannot be read; the message is one line."""


def boolean(text: str) -> bool:
    """Reads true and false."""
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"{text!r} must be true or false")


def whole(text: str) -> int:
    """Reads a whole number; 1e3 is one."""
    try:
        value = float(text)
        if value == int(value):
            return int(text) if re.fullmatch(r"[+-]?\d+", text) else int(value)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} must be a whole number")


def number(text: str) -> float:
    """Reads a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number") from None


_READERS: dict[type, Callable[[str], Any]] = {bool: boolean, int: whole, float: number, str: str}


def _within(read: Callable[[str], Any], low: float | None, high: float | None) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        value = read(text)
        if low is not None and value < low:
            raise argparse.ArgumentTypeError(f"{value} must be at least {low:g}")
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f"{value} must be at most {high:g}")
        return value

    return checked


class Parser:
    """Reads the flags of a command.

    Args:
      name: of the command.
      text: its help.
    """

    def __init__(self, name: str, text: str):
        self.name = name
        self.passes_on = False  # all arguments go to another program as they are
        self._names: list[str] = []
        self._group: str | None = None
        self._trains = False
        self._default_config: str | Callable[[argparse.Namespace], str] | None = None
        self._parser = argparse.ArgumentParser(
            prog=f"smallr {name}",
            description=text.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
            usage=argparse.SUPPRESS,
            exit_on_error=False,
        )
        self._parser.error = self._fail

    def flag(
        self,
        name: str,
        default: Any,
        meaning: str,
        *,
        type: type | None = None,
        choices: Sequence[str] | None = None,
        required: bool = False,
        many: bool = False,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Adds `--name=VALUE`; the value is of the default's type, or of `type` where the default is None."""
        type = type or (str if default is None or many else default.__class__)
        if default not in (None, "", [], False):
            meaning += f" (default: {'true' if default is True else default})"
        how: dict[str, Any] = {"nargs": "?", "const": True} if type is bool else {}
        if many:
            how, default = {"action": "append"}, list(default or ())
        self._names.append(name)
        self._parser.add_argument(
            f"--{name}",
            default=default,
            type=_within(_READERS[type], low, high),
            choices=choices,
            required=required,
            help=meaning.replace("%", "%%"),
            metavar=None if choices else type.__name__.upper().replace("STR", "TEXT").replace("INT", "N"),
            **how,
        )

    def argument(
        self, name: str, meaning: str, *, count: str | int | None = None, choices: Sequence[str] | None = None
    ):
        """Adds an argument without a flag."""
        how = {} if count is None else {"nargs": count}
        self._parser.add_argument(name, help=meaning, metavar=name.upper(), choices=choices, **how)

    def config(
        self,
        group: str = "",
        *,
        trains: bool = False,
        default: str | Callable[[argparse.Namespace], str] | None = None,
    ) -> None:
        """Adds a config by name or by file, with its fields as flags.

        Args:
          group: folder of configs whose names need no folder in front.
          trains: whether the config is of a training run: `--lora` adds its fields, `--track` names trackers.
          default: the config if none is named; a function gives it for the flags of the command line.
        """
        self._group, self._trains, self._default_config = group, trains, default
        self._parser.add_argument(
            "config_name", nargs="?", metavar="CONFIG", help="name of a config (smallr configs lists them) or a file"
        )
        self.flag("config", None, "the same as a flag: --config=NAME or FILE, with an argument behind a colon")
        if trains:
            self.flag("lora", False, "train adapters of the config's model (LoRA), see --config.lora.rank")
            self.flag("track", None, "where metrics go, of: tensorboard, wandb, trackio, mlflow; several with commas")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace | None:
        """Reads a command line; None if it asked for help, which is printed.

        Raises:
          UsageError: it cannot be read.
        """
        if any(word in _HELP for word in argv):
            print(self._help([word for word in argv if word not in _HELP]))
            return None
        rest, overrides = _split([_underscored(word) for word in argv])
        try:
            options, unknown = self._parser.parse_known_args(rest)
        except argparse.ArgumentError as error:
            self._fail(str(error))
        if unknown:
            self._fail_unknown(unknown[0], options)
        options.given = {word[2:].partition("=")[0] for word in rest if word.startswith("--")}
        if self._group is None:
            if overrides:
                self._fail(f"{_OVERRIDE}{overrides[0][0]}: this command has no config")
            return options
        options.config = self._load(options, overrides)
        return options

    def _load(self, options: argparse.Namespace, overrides: Sequence[tuple[str, str | None]]) -> ConfigDict:
        name, flag = options.config_name, options.config
        if name and flag:
            self._fail(f"two configs, {name} and --config={flag}: give one")
        default = self._default_config
        name = name or flag or (default(options) if callable(default) else default)
        if name is None and config_files.is_run(getattr(options, "workdir", None)):
            options.config_name, config = None, config_files.of_run(options.workdir)
        elif name is None:
            workdir = getattr(options, "workdir", None)
            missing = f"there is no run in {workdir} to go on with; " if workdir else ""
            self._fail(
                f"{missing}name a config, e.g. smallr {self.name} {_example(self._group)} (smallr configs lists them)"
            )
        else:
            config, options.config_name = config_files.load(name, self._group)
        if self._trains and options.lora and "lora" not in config:
            config = fields.with_lora(config)
        if self._trains and options.track is not None:
            config.track.to = tuple(name for name in options.track.split(",") if name)
        for path, text in overrides:
            fields.set_field(config, path, text)
        return config

    def _help(self, argv: Sequence[str]) -> str:
        text = self._parser.format_help().strip()
        if self._group is None:
            return text
        named = [word.removeprefix("--config=") for word in argv if word.startswith("--config=") or word[:1] != "-"]
        if not named:
            return f"{text}\n\nsmallr {self.name} CONFIG --help shows the fields of a config."
        config, name = config_files.load(named[0], self._group)
        if self._trains and "--lora" in argv and "lora" not in config:
            config = fields.with_lora(config)
        return f"{text}\n\nFields of {name}, set by --config.FIELD=VALUE:\n\n{fields.describe(config)}"

    def _fail_unknown(self, word: str, options: argparse.Namespace) -> None:
        if not word.startswith("-"):
            self._fail(f"unexpected argument {word!r}")
        name = word.lstrip("-").partition("=")[0]
        named = self._group is not None and (options.config_name or options.config)
        found = fields.nearest_fields(config_files.load(named, self._group)[0], name) if named else []
        if found:
            hint = f"; did you mean --config.{found[0]}?"
        else:
            hint = nearest(name, self._names).replace("'", "--", 1).replace("'", "", 1)
        self._fail(f"no flag --{name}{hint} (smallr {self.name} --help)")

    def _fail(self, message: str) -> None:
        raise UsageError(f"{self.name}: {message}".replace("argument --", "--", 1))


def _split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Takes `--config.FIELD=VALUE` and `--config.FIELD VALUE` out of a command line."""
    rest, overrides, words = [], [], iter(argv)
    for word in words:
        if not word.startswith(_OVERRIDE):
            rest.append(word)
            continue
        path, equals, value = word.removeprefix(_OVERRIDE).partition("=")
        overrides.append((path, value if equals else next(words, None)))
    return rest, overrides


def _underscored(word: str) -> str:
    """Turns `--row-length=8` into `--row_length=8`."""
    match = _FLAG.match(word)
    return f"--{match[0][2:].replace('-', '_')}{word[match.end() :]}" if match else word


def _example(group: str) -> str:
    return {
        "": "cogpo",
        "eval": "gsm8k",
        "crv": "annotate",
        "collate": "base",
        "planner": "spider",
        "decomposition": "generate",
    }[group]
