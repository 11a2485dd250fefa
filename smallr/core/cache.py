"""Where smallr keeps what it can compute again: tokenised data, reference log-probs, compiled programs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """The folder `$SMALLR_CACHE/<parts>` (default `~/.cache/smallr`), created if it is missing."""
    root = os.environ.get("SMALLR_CACHE")
    folder = (Path(root) if root else Path.home() / ".cache" / "smallr").joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
