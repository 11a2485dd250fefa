"""Makes a smallr model in this process a `LanguageModel`."""

from __future__ import annotations

import asyncio

from smallr.core.errors import UserError
from smallr.language.cache import ResultCache
from smallr.language.completing import CompletingModel
from smallr.language.engine_thread import ContinuousEngine, EngineFailure, EngineThread, RequestFailure
from smallr.sampling.requests import Request, Result


class LocalModel(CompletingModel):
    """Completes with an engine whose batch all callers share.

    Args:
      name: what results are reported under.
      engine: no one else may use it any more.
      identity, cache: see `CompletingModel`. With a cache the identity must tell apart whatever changes the tokens:
        weights, tokenizer, chat template, dtype.
    """

    hopeless = (UserError, EngineFailure)

    def __init__(
        self, name: str, engine: ContinuousEngine, *, identity: str | None = None, cache: ResultCache | None = None
    ):
        super().__init__(name, identity=identity, cache=cache)
        self.engine = EngineThread(engine)

    @property
    def weight_bytes(self) -> int:
        """Returns the bytes that the weights take while it answers; the key-value cache is not among them."""
        return sum(self.engine.engine.weight_bytes)

    async def _answer(self, request: Request, sample: int = 0) -> Result:
        try:
            return await asyncio.wrap_future(self.engine.submit(request))
        except RequestFailure as error:
            return Result(error=str(error))

    async def _release(self) -> None:
        self.engine.close()
