"""One real engine for all tests of this folder: its programs are compiled once."""

from __future__ import annotations

import pytest

from smallr.language.loading import Loaded, load_engine


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    """tiny-random in float32, with as many decode slots and as long a context as the served one of `test_serve`."""
    return load_engine("tiny-random", dtype="float32", decode_slots=4, max_length=192)
