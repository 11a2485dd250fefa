"""The routes of OpenAI's protocol over one engine."""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from smallr.language.engine_thread import Answer, EngineFailure, EngineThread
from smallr.language.serving.bodies import BadRequest, Body, ChatBody, TextBody, parse
from smallr.language.serving.replies import Writer, sse
from smallr.language.serving.streaming import Streamed
from smallr.sampling.requests import Request, Result, Usage

_CLIENT_LEFT = 499  # as nginx logs it; nobody is there to read it


def make_app(name: str, engine: EngineThread, *, max_length: int, max_queue: int) -> FastAPI:
    """The application.

    Args:
      name: of the model, as clients ask for it.
      engine: what completes.
      max_length: tokens of prompt and completion together.
      max_queue: requests that may wait or be decoded at once; more are told to come back (503).
    """
    app = FastAPI(title="smallr", openapi_url=None)
    service = _Service(name, engine, max_length, max_queue)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "failed"}, 503) if engine.failure else JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card()]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        service.check_model(model)
        return service.card()

    @app.post("/v1/chat/completions")
    async def chat(http: HttpRequest) -> Response:
        return await service.complete(http, ChatBody)

    @app.post("/v1/completions")
    async def text(http: HttpRequest) -> Response:
        return await service.complete(http, TextBody)

    @app.exception_handler(BadRequest)
    async def bad_request(_: HttpRequest, error: BadRequest) -> Response:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_route(http: HttpRequest, error: HTTPException) -> Response:
        return await bad_request(
            http, BadRequest(f"{http.method} {http.url.path}: {error.detail}", status=error.status_code)
        )

    return app


class _Service:
    """Requests from the moment they are parsed until they are answered."""

    def __init__(self, name: str, engine: EngineThread, max_length: int, max_queue: int):
        self._name, self._engine, self._max_length, self._max_queue = name, engine, max_length, max_queue

    def card(self) -> dict[str, Any]:
        """The model in the list of models."""
        return {
            "id": self._name,
            "object": "model",
            "created": 0,
            "owned_by": "smallr",
            "max_model_len": self._max_length,
        }

    def check_model(self, model: str | None) -> None:
        if model not in (None, "", self._name):
            raise BadRequest(
                f"the model {model!r} does not exist; served here: {self._name}",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def complete(self, http: HttpRequest, kind: type[Body]) -> Response:
        try:
            fields = json.loads(await http.body())
        except ValueError as error:
            raise BadRequest(f"the body is no JSON: {error}") from None
        body = parse(kind, fields)
        self.check_model(body.model)
        requests = body.requests(self._max_length)
        if self._engine.load + len(requests) > self._max_queue:
            raise BadRequest(
                f"{self._engine.load} requests are waiting: try again later", status=503, code="queue_full"
            )
        writer = Writer(kind is ChatBody, self._name)
        try:
            if body.stream:
                return await self._stream(http, body, requests, writer)
            results = await _unless_left(http, [self._engine.submit(request) for request in requests])
        except EngineFailure as error:
            raise BadRequest(str(error), status=500, code="engine_failed") from error
        if results is None:
            return Response(status_code=_CLIENT_LEFT)
        for result in results:
            _check(result)
        return JSONResponse(writer.whole(results))

    async def _stream(self, http: HttpRequest, body: Body, requests: Sequence[Request], writer: Writer) -> Response:
        chunks = self._chunks(body, requests, writer)
        # The first chunk is awaited here: a request that fails at once fails with a status code.
        first = await _unless_left(http, [asyncio.ensure_future(anext(chunks))])
        if first is None:
            return Response(status_code=_CLIENT_LEFT)

        async def events() -> AsyncIterator[str]:
            try:
                yield sse(first[0])
                async for chunk in chunks:
                    yield sse(chunk)
                yield sse("[DONE]")
            except BadRequest as error:
                yield sse(error.body())
            except EngineFailure as error:
                yield sse(BadRequest(str(error), status=500, code="engine_failed").body())
            finally:
                await chunks.aclose()

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def _chunks(
        self, body: Body, requests: Sequence[Request], writer: Writer
    ) -> AsyncGenerator[dict[str, Any], None]:
        usage = Usage()
        begun: set[int] = set()
        offsets: collections.Counter[int] = collections.Counter()
        with Streamed(self._engine, requests) as events:
            async for event in events:
                if isinstance(event, Result):
                    _check(event)
                    usage += event.usage
                    continue
                choice, delta = event
                if writer.chat and choice not in begun:
                    begun.add(choice)
                    yield writer.opening(choice)
                if delta.text or delta.logprobs:
                    yield writer.piece(choice, delta.text, delta.logprobs, offsets[choice])
                    offsets[choice] += sum(len(token.token) for token in delta.logprobs or ())
                if delta.finish_reason:
                    yield writer.ending(choice, delta.finish_reason)
        if body.stream_options and body.stream_options.include_usage:
            yield writer.usage(usage)


def _check(result: Result) -> None:
    if result.error is not None:
        raise BadRequest(result.error, code="invalid_request")


async def _unless_left(http: HttpRequest, work: Sequence[Answer | asyncio.Future]) -> list[Any] | None:
    """The results of all, or None when the client hangs up; then all of them are cancelled.

    The body having been read, the next message can only be that the client has left.
    """
    everything = asyncio.gather(*(w if isinstance(w, asyncio.Future) else asyncio.wrap_future(w) for w in work))
    leaving = asyncio.ensure_future(http.receive())
    try:
        await asyncio.wait([everything, leaving], return_when=asyncio.FIRST_COMPLETED)
        return await everything if everything.done() else None
    finally:
        everything.cancel()
        leaving.cancel()
