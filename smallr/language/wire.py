"""Translates between requests and results and the JSON of OpenAI's chat and text completions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from smallr.sampling.requests import Grammar, Request, Result, Sample, SamplingParams, TokenLogprob, Usage

# What servers write for our two reasons.
_FINISH = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_calls": "stop",
    "length": "length",
    "max_tokens": "length",
}
_OPENAIS = ("top_p", "n", "presence_penalty", "frequency_penalty")
_TEMPLATES = ("add_generation_prompt", "continue_final_message")
_PASSING = {408, 409, 425, 429}  # status codes, besides 5xx, after which the same request may succeed


class Malformed(Exception):
    """Raised for a reply that says nothing, e.g. one that was cut off; another attempt may give a good one."""


class Refused(Exception):
    """Raised where a request will get no answer however often it is sent; the message is the reason.

    Attributes:
      status: the HTTP status code, if that said it.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


def is_passing(status: int) -> bool:
    """Says whether a request that met this status code is worth another attempt."""
    return status in _PASSING or status >= 500


def wire_seed(request: Request, sample: int) -> int | None:
    """Returns the seed that makes a server draw by our rule, whose own seeds know neither rounds nor prompts.

    Two prompts with one seed would share a stream of random numbers there, and so would two rounds.
    """
    params = request.params
    if params.seed is None:
        return None
    content = [params.seed, params.round, sample, [dict(message) for message in request.messages], request.prompt]
    return int.from_bytes(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()[:4], "big") >> 1


def request_body(
    request: Request, model: str, limit_name: str = "max_tokens", *, sample: int = 0, has_rounds: bool = False
) -> dict[str, Any]:
    """Returns arguments of the client's `create`: OpenAI's by name, others (vLLM's, SGLang's) in `extra_body`.

    What has its default is left out, since servers differ in what they refuse.

    Raises:
      Refused: an echo, which no reply is read for.

    Args:
      request: what to ask.
      model: as the server calls it.
      limit_name: of the largest number of tokens to write, which servers call differently.
      sample: number of the first sample, where the samples of one request are asked for one by one.
      has_rounds: whether the server draws by seed, round and prompt as smallr does; else it gets `wire_seed`.
    """
    params = request.params
    if params.echo:
        raise Refused("echo is for a local model; a server's reply is read without the prompt")
    body: dict[str, Any] = {"model": model, "temperature": params.temperature, limit_name: params.max_tokens}
    if request.messages:
        body["messages"] = [dict(message) for message in request.messages]
    else:
        body["prompt"] = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    if params.logprobs is not None:
        chat = {"logprobs": True, "top_logprobs": params.logprobs}
        body |= chat if request.messages else {"logprobs": params.logprobs}
    default = SamplingParams()
    body |= {name: value for name in _OPENAIS if (value := getattr(params, name)) != getattr(default, name)}
    has_rounds = has_rounds and sample == 0
    seed = params.seed if has_rounds else wire_seed(request, sample)
    if seed is not None:
        body["seed"] = seed
    if params.stop:
        body["stop"] = list(params.stop)
    extra = {
        name: list(value) if isinstance(value, tuple) else value
        for name in ("top_k", "min_p", "stop_token_ids", "ignore_eos", "repetition_penalty")
        if (value := getattr(params, name)) != getattr(default, name)
    }
    if has_rounds and params.round:
        extra["round"] = params.round
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    if params.grammar is not None:
        body, extra = _with_grammar(params.grammar, body, extra)
    extra |= {name: value for name in _TEMPLATES if (value := getattr(request, name)) is not None}
    if request.template_kwargs:
        extra["chat_template_kwargs"] = dict(request.template_kwargs)
    return body | ({"extra_body": extra} if extra else {})


def _with_grammar(
    grammar: Grammar, body: dict[str, Any], extra: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the body and its extra part with a grammar: a JSON schema as OpenAI takes it, others as vLLM does."""
    if grammar.kind == "json":
        schema = {"name": "answer", "schema": json.loads(grammar.text), "strict": True}
        return body | {"response_format": {"type": "json_schema", "json_schema": schema}}, extra
    text = json.loads(grammar.text) if grammar.kind == "choice" else grammar.text
    return body, extra | {"structured_outputs": {grammar.kind: text}}


def parse_reply(reply: Any, request: Request) -> Result:
    """Reads the samples and the usage of a reply to `request`; there may be fewer samples than were asked for.

    Raises:
      Malformed: no completion can be read from it.
      Refused: an error in a reply's clothes, a completion that was withheld, log-probs that were asked for and not given.
    """
    if not isinstance(reply, Mapping):
        raise Malformed(f"the reply is JSON but no object: {str(reply)[:100]!r}")
    if error := reply.get("error"):
        _raise_error(error)
    choices = reply.get("choices")
    if not isinstance(choices, Sequence) or not choices:
        raise Malformed("the reply has no choices")
    try:
        choices = sorted(choices, key=lambda choice: choice.get("index", 0))
        read = _chat_sample if request.messages else _text_sample
        samples = tuple(read(choice, request.params.logprobs) for choice in choices)
        usage = reply.get("usage") or {}
        counts = Usage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"the reply is not a completion ({type(error).__name__}: {error})") from error
    return Result(samples, counts)


def _raise_error(error: Any) -> None:
    code, message = (error.get("code"), error.get("message")) if isinstance(error, Mapping) else (None, error)
    if isinstance(code, int) and not is_passing(code):
        raise Refused(f"{code}: {message}", code)
    raise Malformed(f"the server replied with the error {message!r}")


def _chat_sample(choice: Mapping[str, Any], asked: int | None) -> Sample:
    content = choice["message"].get("content") or ""
    if not isinstance(content, str):  # a list of parts
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    given = (choice.get("logprobs") or {}).get("content") if asked is not None else None
    logprobs = None
    if given is not None:
        logprobs = tuple(
            TokenLogprob(
                None,
                each["token"],
                float(each["logprob"]),
                tuple((top["token"], float(top["logprob"])) for top in (each.get("top_logprobs") or ())[:asked]),
            )
            for each in given
        )
    return Sample(content, _finish(choice), logprobs=_present(logprobs, asked, content))


def _text_sample(choice: Mapping[str, Any], asked: int | None) -> Sample:
    given = choice.get("logprobs") if asked is not None else None
    logprobs = None
    if given is not None:
        tops = given.get("top_logprobs") or [None] * len(given["tokens"])
        logprobs = tuple(
            TokenLogprob(None, token, float(logprob), _likeliest(top, asked))
            for token, logprob, top in zip(given["tokens"], given["token_logprobs"], tops, strict=True)
        )
    return Sample(choice["text"], _finish(choice), logprobs=_present(logprobs, asked, choice["text"]))


def _likeliest(top: Mapping[str, float] | None, count: int | None) -> tuple[tuple[str, float], ...]:
    # Servers may add the chosen token to the likeliest ones.
    ranked = sorted((top or {}).items(), key=lambda pair: -pair[1])
    return tuple((token, float(logprob)) for token, logprob in ranked[:count])


def _present(
    logprobs: tuple[TokenLogprob, ...] | None, asked: int | None, text: str
) -> tuple[TokenLogprob, ...] | None:
    if asked is not None and not logprobs and text:
        raise Refused(f"the server gave no log-probs, though asked for (logprobs={asked}): ask without, or elsewhere")
    if any(math.isnan(each.logprob) for each in logprobs or ()):
        raise Malformed("a log-prob of the reply is no number (NaN)")
    return () if asked is not None and logprobs is None else logprobs  # an empty text has no tokens


def _finish(choice: Mapping[str, Any]) -> str:
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise Refused("the server withheld the completion (content_filter)")
    if reason not in _FINISH:
        raise Malformed(f"the completion was not finished (finish_reason {reason!r})")
    return _FINISH[reason]
