"""The built-in model, loaded once for all tests of the package."""

from __future__ import annotations

import pytest

from smallr.core.sharding import make_mesh
from smallr.models.decoder import Decoder
from smallr.models.loading import ModelSource, load_decoder


@pytest.fixture(scope="session")
def smollm2_decoder(smollm2: ModelSource) -> Decoder:
    """Its decoder in float32."""
    return load_decoder(smollm2, make_mesh())
