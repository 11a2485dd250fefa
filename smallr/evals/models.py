"""Opens models for evaluation by their names; no other module of the package does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.language.base import LanguageModel
from smallr.language.opening import open_configured

if TYPE_CHECKING:
    from smallr.evals.likelihood import LikelihoodScorer


def open_for_answers(config: ConfigDict) -> LanguageModel:
    """Returns the model that answers in text.

    Raises:
      UserError: no such model, a run without a checkpoint, a server that is down.
    """
    return open_configured(config, config.model)


def open_scorer(
    name: str, *, dtype: str = "bfloat16", max_length: int | None = None, tokens_per_batch: int = 8192
) -> LikelihoodScorer:
    """Returns the model that scores given texts, on all devices.

    Raises:
      UserError: no such model, a run without a checkpoint, a server.
    """
    if name.startswith(("http:", "https:")):
        raise UserError(f"model {name!r}: likelihoods of given texts need the weights; a server does not give them")
    import jax  # only now: a server needs none of this

    from smallr.core.sharding import make_mesh
    from smallr.evals.likelihood import LikelihoodScorer
    from smallr.language.loading import load_trained

    mesh = make_mesh(1, 1, -1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained(name, mesh, dtype=dtype)
        return LikelihoodScorer(
            decoder, source.tokenizer(), mesh, max_length=max_length, tokens_per_batch=tokens_per_batch
        )
