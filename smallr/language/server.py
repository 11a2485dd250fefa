"""Speaks to any server of OpenAI's protocol: vLLM, SGLang, smallr serve, a vendor."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai

from smallr.core.errors import UserError
from smallr.language.cache import ResultCache
from smallr.language.completing import CompletingModel
from smallr.language.retrying import Backoff, retry_after
from smallr.language.wire import Malformed, Refused, is_passing, parse_reply, request_body
from smallr.sampling.requests import Request, Result, Usage

OPENAI_HOST, OPENAI_KEY, OTHER_KEY = "api.openai.com", "OPENAI_API_KEY", "SMALLR_API_KEY"
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")  # as good as refused, though sent with status 429
_MOST_CONNECTIONS = 1000  # of the client's pool

_MAYBE_N = (400, 422, 501)  # how servers refuse a parameter
T = TypeVar("T")


class _Passing(Exception):
    """Says that an attempt failed in a way that may pass; `wait` is what the server asks for, in seconds."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class ServerModel(CompletingModel):
    """Represents a model behind a server.

    Args:
      base_url: up to and with `/v1`; without a name or a key in it.
      model: as the server calls it; None for the only one that it serves.
      api_key_env: the environment variable that holds the key; by default OPENAI_API_KEY for api.openai.com and
        SMALLR_API_KEY for every other host, so that no host is sent a key that was meant for another.
      concurrency: requests under way at once; one that waits to be sent again counts.
      max_retries: attempts after the first that a request is given.
      timeout: seconds that one attempt may take in all, so that a trickle of bytes ends too.
      idle_timeout: seconds that the server may be silent; None for `timeout`. Replies are not streamed, so a server is
        silent for as long as it writes a completion.
      connect_timeout: seconds to reach the server.
      cache: see `CompletingModel`; results are filed under address and model.

    Raises:
      UserError: an address that is none.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key_env: str | None = None,
        concurrency: int = 32,
        max_retries: int = 6,
        backoff: Backoff | None = None,
        timeout: float = 600.0,
        idle_timeout: float | None = None,
        connect_timeout: float = 10.0,
        cache: ResultCache | None = None,
    ):
        self.base_url = _checked_url(base_url)
        if not 1 <= concurrency <= _MOST_CONNECTIONS:
            raise UserError(f"concurrency={concurrency} must be from 1 to {_MOST_CONNECTIONS}")
        super().__init__(model or "", identity=f"{self.base_url}#{model}", cache=cache)
        host = urlsplit(base_url).hostname
        self._key_name = api_key_env or (OPENAI_KEY if host == OPENAI_HOST else OTHER_KEY)
        self._key = os.environ.get(self._key_name, "").strip()
        silent = timeout if idle_timeout is None else idle_timeout
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",  # the client wants one; local servers do not look
            max_retries=0,  # ours look into replies as well
            timeout=openai.Timeout(timeout, connect=connect_timeout, read=silent),
        )
        self._timeout = timeout
        self._max_retries, self._backoff = max_retries, backoff or Backoff()
        self._connections = asyncio.Semaphore(concurrency)
        self._checked: asyncio.Task[None] | None = None
        self._is_reached = False  # something answered at the address
        self._has_answered = False  # and it was a completion
        self._has_rounds = False  # the server is smallr's, which draws by seed, round and prompt
        self._limit_name = "max_tokens"
        # By greedy or not: the smallest n that the server does not take. Some refuse n for greedy requests alone.
        self._too_many: dict[bool, int] = {}

    def check(self) -> None:
        """Asks the server for its models, and takes the only one if none was named.

        The first request does this too, if it was not done before.

        Raises:
          UserError: the server is down, refuses the key, or has no such model; says what to do.
        """
        self._wait(self._check_once())

    async def _check_once(self) -> None:
        if self._checked is None or (self._checked.done() and (self._checked.cancelled() or self._checked.exception())):
            self._checked = asyncio.ensure_future(self._check())
        await asyncio.shield(self._checked)

    async def _check(self) -> None:
        try:
            # Without a list or a right to it there may be completions; with a wrong key there are none.
            text = await self._retried(lambda: self._call(self._client.models.with_raw_response.list, hopeless=(401,)))
            entries = json.loads(text)["data"]
            served = [entry["id"] for entry in entries]
            self._has_rounds = bool(entries) and all(entry.get("owned_by") == "smallr" for entry in entries)
        except UserError:
            raise
        except (Refused, ValueError, KeyError, TypeError, AttributeError):
            served = []  # a server without that list
        if not self.name:
            if len(served) != 1:
                raise UserError(f"name the model: {self.base_url}#MODEL. Served there: {_listing(served)}.")
            self.name = served[0]
            self._identity = f"{self.base_url}#{self.name}"
        elif served and not any(each in (self.name, f"models/{self.name}") for each in served):
            raise UserError(f"{self.base_url} has no model {self.name!r}. Served there: {_listing(served)}.")

    async def _cached(self, request: Request, sample: int = 0) -> Result:
        if not self.name:  # it is part of the key
            await self._check_once()
        return await super()._cached(request, sample)

    async def _answer(self, request: Request, sample: int = 0) -> Result:
        await self._check_once()
        params = request.params
        greedy = params.temperature == 0
        try:
            if params.n >= self._too_many.get(greedy, params.n + 1):
                return await self._one_by_one(request, Result())
            try:
                result = await self._sent(request, sample)
            except Refused as error:
                if params.n == 1 or error.status not in _MAYBE_N:
                    raise
                # Is it n that was refused? A single one tells, and if so it is the first of them.
                first = await self._cached(_single(request))
                if first.error is not None:
                    raise
                self._too_many[greedy] = params.n
                return await self._one_by_one(request, first)
            if len(result.samples) < params.n:  # a server that passes n over in silence
                self._too_many[greedy] = params.n
                return await self._one_by_one(request, result)
            return dataclasses.replace(result, samples=result.samples[: params.n])
        except Refused as error:
            return Result(error=str(error))

    async def _one_by_one(self, request: Request, begun: Result) -> Result:
        """Asks for the samples that are missing in `begun`, each by a request with a cache entry of its own."""
        missing = range(len(begun.samples), request.params.n)
        rest = await asyncio.gather(*(self._cached(_single(request), sample) for sample in missing))
        for result in rest:
            if result.error is not None:
                return Result(error=result.error)
        paid = [result.usage for result in (begun, *rest) if not result.cached]
        samples = [sample for result in (begun, *rest) for sample in result.samples]
        return Result(tuple(samples), sum(paid, Usage()))

    async def _sent(self, request: Request, sample: int) -> Result:
        """Sends one request as often as it takes.

        Raises:
          Refused: it has no answer, and why.
          UserError: nor would any other request.
        """
        kind = self._client.chat.completions if request.messages else self._client.completions

        async def attempt() -> Result:
            limit, rounds = self._limit_name, self._has_rounds
            body = request_body(request, self.name, limit, sample=sample, has_rounds=rounds)
            try:
                text = await self._call(lambda: kind.with_raw_response.create(**body))
                return parse_reply(json.loads(text), request)
            except Refused as error:
                if limit == "max_tokens" and "max_completion_tokens" in str(error):
                    self._limit_name = "max_completion_tokens"
                    raise _Passing(str(error)) from error
                raise
            except json.JSONDecodeError as error:
                raise _Passing(f"the reply is not JSON ({error}): {text[:100]!r}") from error
            except Malformed as error:
                raise _Passing(str(error)) from error
            except UnicodeEncodeError as error:
                raise Refused(f"the prompt is no text that can be sent: {error.reason}") from error

        async with self._connections:
            result = await self._retried(attempt)
        self._has_answered = True
        return result

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        number = 0
        while True:
            try:
                return await attempt()
            except _Passing as error:
                delay = self._backoff.delay(number, error.wait)
                if delay is None:
                    raise Refused(f"{error}; the server wants a wait of {error.wait:.0f} s") from error
                number += 1
                if number > self._max_retries:
                    raise Refused(f"{error}; {number} attempts") from error
            await asyncio.sleep(delay)

    async def _call(self, send: Callable[[], Awaitable[Any]], hopeless: Sequence[int] = (401, 403, 404)) -> str:
        """Returns the text of one reply with a good status code; `hopeless` ones before any completion end everything."""
        try:
            async with asyncio.timeout(self._timeout):
                text = (await send()).text
        except (TimeoutError, openai.APIConnectionError) as error:
            cause = error.__cause__ or error
            if type(cause).__name__ in ("ConnectError", "ConnectTimeout") and not self._is_reached:
                raise UserError(
                    f"no server answers at {self.base_url} ({cause or type(cause).__name__}): start it "
                    "(smallr serve --model=… --port=…), or mend the address"
                ) from error
            if isinstance(error, (TimeoutError, openai.APITimeoutError)):
                raise _Passing(f"time-out: no whole reply within {self._timeout:g} s") from error
            raise _Passing(f"the connection was lost ({type(cause).__name__}: {cause})") from error
        except openai.APIStatusError as error:
            self._is_reached = True
            raise self._judged(error, hopeless) from None  # the cause would show all that the server wrote
        self._is_reached = True
        return text

    def _judged(self, error: openai.APIStatusError, hopeless: Sequence[int]) -> Exception:
        """Says what a bad status code means for the request, or for all."""
        status, message = error.status_code, _message(error)
        message = message.replace(self._key, "***") if self._key else message
        broke = status == 429 and (error.code in _NO_MONEY or error.type in _NO_MONEY)
        if is_passing(status) and not broke:
            return _Passing(f"{status}: {message}", retry_after(error.response.headers))
        if self._has_answered or not (broke or status in hopeless):
            return Refused(f"{status}: {message}", status)
        what = {
            401: f"it refuses the key: put the right one in the environment variable {self._key_name}"
            + ("" if self._key else ", which is not set"),
            403: f"it forbids this; is the key in {self._key_name} for this model?",
            404: "it has no such model or address; the address usually ends in /v1",
            429: "the account's quota is used up",
        }[status]
        return UserError(f"{self.base_url}, model {self.name!r}: {what} ({status}: {message})")

    async def _release(self) -> None:
        await self._client.close()


def _single(request: Request) -> Request:
    return dataclasses.replace(request, params=dataclasses.replace(request.params, n=1))


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    text = body.get("message") if isinstance(body, dict) else None
    return str(text or error.response.text).strip()[:500]


def _listing(names: list[str]) -> str:
    return (", ".join(names[:20]) + (" …" if len(names) > 20 else "")) or "it does not say"


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r} must be the address of a server: http(s)://HOST[:PORT]/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"the address of {parts.hostname} holds a name, key or query: put the key in an environment variable instead "
            f"({OTHER_KEY}, or what api_key_env names)"
        )
    return url.rstrip("/")
