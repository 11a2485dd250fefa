"""Reads prompts: files of text with fields in double braces, each of which a user can replace."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from smallr.core.errors import UserError
from smallr.data.errors import nearest

_FIELD = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclasses.dataclass(frozen=True)
class PromptFields:
    """Names the fields that a prompt must have, and those that it may have."""

    needed: frozenset[str]
    optional: frozenset[str] = frozenset()


class Prompts:
    """Holds all prompts of a method.

    Args:
      package: whose folder `prompts` has a file NAME.txt for each.
      fields: of each prompt, by its name.
      files: name -> path of a file that replaces the package's own; empty for that.

    Raises:
      UserError: a file that cannot be read, has a field that is not known or lacks one that it needs.
    """

    def __init__(self, package: str, fields: Mapping[str, PromptFields], files: Mapping[str, str]):
        self._texts = {name: _read(package, name, files.get(name, ""), each) for name, each in fields.items()}

    def render(self, name: str, **fields: str) -> str:
        """Fills the fields of a prompt in; what stands in a field is not looked at again."""
        return _FIELD.sub(lambda match: fields[match[1]], self._texts[name])

    @property
    def digest(self) -> str:
        """Returns a digest of all texts."""
        return hashlib.sha256(json.dumps(self._texts, sort_keys=True).encode()).hexdigest()[:16]


def _read(package: str, name: str, file: str, fields: PromptFields) -> str:
    where = f"config.prompts.{name} = {file!r}"
    if file:
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: cannot be read: {error}") from error
    else:
        text = resources.files(package).joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    found = set(_FIELD.findall(text))
    known = sorted(fields.needed | fields.optional)
    for field in sorted(found.difference(known)):
        raise UserError(f"{where}: no field {{{{{field}}}}}; there are {', '.join(known)}{nearest(field, known)}")
    if missing := fields.needed - found:
        raise UserError(f"{where}: it lacks the field {{{{{min(missing)}}}}}")
    return text.strip()
