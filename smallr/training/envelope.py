"""Seals what a checkpoint says of itself; without Orbax, which takes long to import and reads the arrays alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError

FORMAT = 1


class CheckpointError(UserError):
    """Says that no checkpoint of the folder can be restored, or that a save failed."""


class DamagedError(Exception):
    """Says that a checkpoint cannot be restored; the reason is the message."""


def seal(envelope: dict[str, Any]) -> dict[str, Any]:
    """Returns the envelope with the checksum of its other entries."""
    text = json.dumps(envelope, sort_keys=True)
    return json.loads(text) | {"checksum": hashlib.sha256(text.encode()).hexdigest()}


def unseal(path: Path, step: int) -> dict[str, Any]:
    """Returns the envelope of the checkpoint of `step`, from its metadata file.

    Raises:
      DamagedError: the file is missing or not what was saved.
      CheckpointError: it has a newer format.
    """
    if not path.exists():
        raise DamagedError(f"{path.parent.name}/{path.name} is missing")
    try:
        envelope = json.loads(path.read_text())
        checksum = envelope.pop("checksum")
        newer = envelope.get("format", FORMAT) > FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"metadata is not what was saved ({type(error).__name__}: {error})") from error
    if newer:
        raise CheckpointError(f"{path.parent.parent} was written by a newer smallr (format {envelope['format']})")
    if seal(envelope)["checksum"] != checksum:
        raise DamagedError("metadata is not what was saved (checksum)")
    if envelope["step"] != step:
        raise DamagedError(f"it is the checkpoint of step {envelope['step']}, not of step {step}")
    return envelope


def root_cause(error: BaseException) -> str:
    """Returns the first line of the innermost error, which Orbax wraps in screens of TensorStore settings."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
