"""The prompts of the agents: files of text with fields in double braces, each of which a user can replace."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from smallr.core.errors import UserError
from smallr.data.errors import nearest

# name -> fields that it must have, fields that it may have. `feedback` is put behind a rethinking prompt that is asked
# again; `student` is what the student is asked, when it is sampled and when it is trained.
FIELDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "critique": (frozenset({"question", "rationale"}), frozenset({"student", "answer"})),
    **dict.fromkeys(
        ("extend", "simplify", "repair", "inject"),
        (frozenset({"question", "rationale"}), frozenset({"student", "answer", "format"})),
    ),
    "feedback": (frozenset({"reason"}), frozenset({"attempt"})),
    "verify": (frozenset({"question", "rationale"}), frozenset({"answer"})),
    "student": (frozenset({"question"}), frozenset()),
}
_FIELD = re.compile(r"\{\{\s*(\w+)\s*\}\}")


class Prompts:
    """All prompts.

    Args:
      files: name -> path of a file that replaces smallr's own; empty for that.

    Raises:
      UserError: a file that cannot be read, has a field that is not known or lacks one that it needs.
    """

    def __init__(self, files: Mapping[str, str]):
        self._texts = {name: _read(name, files.get(name, "")) for name in FIELDS}

    def render(self, name: str, **fields: str) -> str:
        """A prompt with its fields filled in; what stands in a field is not looked at again."""
        return _FIELD.sub(lambda match: fields[match[1]], self._texts[name])

    @property
    def digest(self) -> str:
        """Of all texts."""
        return hashlib.sha256(json.dumps(self._texts, sort_keys=True).encode()).hexdigest()[:16]


def _read(name: str, file: str) -> str:
    where = f"config.prompts.{name} = {file!r}"
    if file:
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: cannot be read: {error}") from error
    else:
        text = resources.files("smallr.methods.crv").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    needed, optional = FIELDS[name]
    found = set(_FIELD.findall(text))
    for field in sorted(found - needed - optional):
        known = sorted(needed | optional)
        raise UserError(f"{where}: no field {{{{{field}}}}}; there are {', '.join(known)}{nearest(field, known)}")
    if needed - found:
        raise UserError(f"{where}: it lacks the field {{{{{min(needed - found)}}}}}")
    return text.strip()
