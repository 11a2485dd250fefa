"""Routes OpenAI's protocol to one engine."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from typing import Any

from absl import logging
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from smallr import __version__
from smallr.language.engine_thread import Answer, EngineFailure, EngineThread, RequestFailure
from smallr.language.serving.bodies import Body, ChatBody, TextBody, blamed, parse
from smallr.language.serving.border import MAX_BODY_BYTES, HostGuard, read_fields
from smallr.language.serving.errors import CLIENT_LEFT, BadRequest
from smallr.language.serving.metrics import Metrics
from smallr.language.serving.replies import Writer, sse
from smallr.language.serving.streaming import Ended, Streamed
from smallr.language.serving.tokens import add_token_routes
from smallr.language.serving.trust import ServedTrust
from smallr.sampling.requests import GRAMMARS, Request, Result, Usage


def make_app(
    name: str,
    engine: EngineThread,
    *,
    max_length: int,
    max_queue: int,
    allowed_hosts: Collection[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    metrics: Metrics | None = None,
    trust: ServedTrust | None = None,
) -> FastAPI:
    """Builds the application.

    Args:
      name: of the model, as clients ask for it.
      engine: what completes.
      max_length: tokens of prompt and completion together.
      max_queue: requests that may wait or be decoded at once; more are told to come back (503).
      allowed_hosts: Host headers that are served; empty serves all.
      max_body_bytes: size of a body beyond which it is refused (413).
      metrics: that the engine tells of ended requests.
      trust: rates the answers; None for replies without confidence.
    """
    app = FastAPI(title="smallr", openapi_url=None)
    app.add_middleware(HostGuard, allowed=allowed_hosts)
    service = _Service(name, engine, max_length, max_queue, max_body_bytes, trust)
    _add_state_routes(app, engine, metrics or Metrics(name))

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

    add_token_routes(
        app, engine.engine.codec, service.check_model, max_length=max_length, max_body_bytes=max_body_bytes
    )
    _answer_errors(app)
    return app


def _add_state_routes(app: FastAPI, engine: EngineThread, metrics: Metrics) -> None:
    """Adds the routes for whoever watches the server."""
    metrics.watch(engine)

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/health")
    async def health() -> Response:
        state = {"requests": engine.load, "restarts": engine.restarts}
        if engine.is_alive:
            return JSONResponse({"status": "ok", **state})
        return JSONResponse({"status": "failed", "error": str(engine.failure or "closed"), **state}, 503)


def _answer_errors(app: FastAPI) -> None:
    """Gives every error the shape of OpenAI's protocol."""

    @app.exception_handler(BadRequest)
    async def bad_request(_: HttpRequest, error: BadRequest) -> Response:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_route(http: HttpRequest, error: HTTPException) -> Response:
        return await bad_request(
            http, BadRequest(f"{http.method} {http.url.path}: {error.detail}", status=error.status_code)
        )

    @app.exception_handler(Exception)
    async def unexpected(_: HttpRequest, error: Exception) -> Response:
        return JSONResponse(_server_error(error).body(), 500)


class _Service:
    """Takes requests from their bodies to their replies."""

    def __init__(
        self,
        name: str,
        engine: EngineThread,
        max_length: int,
        max_queue: int,
        max_body_bytes: int,
        trust: ServedTrust | None,
    ):
        self._name, self._engine, self._max_length, self._max_queue = name, engine, max_length, max_queue
        self._max_body_bytes, self._trust = max_body_bytes, trust

    def card(self) -> dict[str, Any]:
        """Returns the model's entry in the list of models."""
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
                f"the model {model[:200]!r} does not exist; served here: {self._name}",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def complete(self, http: HttpRequest, kind: type[Body]) -> Response:
        body = parse(kind, await read_fields(http, self._max_body_bytes))
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
            work = [self._engine.submit(request) for request in self._asking(requests)]
            results = await _unless_left(http, work)
            if results is None:
                return Response(status_code=CLIENT_LEFT)
            for result in results:
                _check(result, body)
            results, extra = await self._rated(requests, results)
        except (EngineFailure, RequestFailure) as error:
            raise _server_error(error) from error
        return JSONResponse(writer.whole(results, extra))

    def _asking(self, requests: Sequence[Request]) -> list[Request]:
        return [self._trust.asking(request) if self._trust else request for request in requests]

    async def _rated(
        self, requests: Sequence[Request], results: Sequence[Result]
    ) -> tuple[list[Result], list[dict[str, Any]]]:
        """Returns what the client gets of results, and the extension fields of every choice."""
        if self._trust is None:
            return list(results), []

        async def verdict(request: Request) -> Result:
            return await asyncio.wrap_future(self._engine.submit(request))

        pairs = zip(requests, results, strict=True)
        rated = await asyncio.gather(*(self._trust.rated(request, result, verdict) for request, result in pairs))
        return [each.result for each in rated], [fields for each in rated for fields in each.fields]

    async def _stream(self, http: HttpRequest, body: Body, requests: Sequence[Request], writer: Writer) -> Response:
        chunks = self._chunks(body, requests, writer)
        # The first chunk is awaited here: a request that fails at once fails with a status code.
        first = await _unless_left(http, [asyncio.ensure_future(anext(chunks))])
        if first is None:
            return Response(status_code=CLIENT_LEFT)

        async def events() -> AsyncIterator[str]:
            try:
                yield sse(first[0])
                async for chunk in chunks:
                    yield sse(chunk)
                yield sse("[DONE]")
            except BadRequest as error:
                yield sse(error.body())
            except Exception as error:
                yield sse(_server_error(error).body())
            finally:
                await chunks.aclose()

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def _chunks(
        self, body: Body, requests: Sequence[Request], writer: Writer
    ) -> AsyncGenerator[dict[str, Any], None]:
        usage = Usage()
        begun: set[int] = set()
        offsets: collections.Counter[int] = collections.Counter()
        endings: dict[int, str] = {}  # of choices whose request is not whole yet
        replaces = self._trust is not None and self._trust.replaces
        with Streamed(self._engine, self._asking(requests)) as events:
            async for event in events:
                if isinstance(event, Ended):
                    _check(event.result, body)
                    (result,), extra = await self._rated([requests[event.number]], [event.result])
                    usage += result.usage
                    for place, sample in enumerate(result.samples if replaces else ()):
                        choice = event.first + place
                        yield writer.growth(choice, (result.prompt_text or "") + sample.text, sample.logprobs, 0)
                        endings[choice] = sample.finish_reason
                    for place in range(len(result.samples)):
                        choice = event.first + place
                        if choice in endings:
                            yield writer.ending(choice, endings.pop(choice), extra[place] if extra else {})
                    continue
                choice, delta = event
                if writer.chat and choice not in begun:
                    begun.add(choice)
                    yield writer.opening(choice)
                logprobs = delta.logprobs if requests[0].params.logprobs is not None else None
                if (delta.text or logprobs) and not replaces:
                    yield writer.growth(choice, delta.text, logprobs, offsets[choice])
                    offsets[choice] += sum(len(token.token) for token in logprobs or ())
                if delta.finish_reason and self._trust is None:
                    yield writer.ending(choice, delta.finish_reason)
                elif delta.finish_reason:
                    endings[choice] = delta.finish_reason
        if body.stream_options and body.stream_options.include_usage:
            yield writer.usage(usage)


def _check(result: Result, body: Body) -> None:
    if result.error is not None:
        kind, _, rest = result.error.partition(": ")
        raise blamed(f"{body.grammar_field}: {rest}" if kind in GRAMMARS and body.grammar_field else result.error)


def _server_error(error: Exception) -> BadRequest:
    if isinstance(error, EngineFailure | RequestFailure):
        code = "engine_failed" if isinstance(error, EngineFailure) else "request_failed"
        return BadRequest(str(error), status=500, code=code)
    logging.error("a request failed", exc_info=error)
    return BadRequest(f"this request failed: {type(error).__name__}", status=500, code="request_failed")


async def _unless_left(http: HttpRequest, work: Sequence[Answer | asyncio.Future]) -> list[Any] | None:
    """Returns the results of all, or None when the client hangs up. What is not finished then is cancelled.

    The body having been read, the next message can only be that the client has left.
    """
    everything = asyncio.ensure_future(_all(work))
    leaving = asyncio.ensure_future(http.receive())
    try:
        await asyncio.wait([everything, leaving], return_when=asyncio.FIRST_COMPLETED)
        return await everything if everything.done() else None
    finally:
        everything.cancel()
        leaving.cancel()


async def _all(work: Sequence[Answer | asyncio.Future]) -> list[Any]:
    parts = [each if isinstance(each, asyncio.Future) else asyncio.wrap_future(each) for each in work]
    results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
