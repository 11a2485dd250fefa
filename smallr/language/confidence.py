"""Measures how sure a model is of the answers that it gave, from log-probs that the completion brought along.

The answer is a span of the text, such as the number in the box; the rationale before it does not count. Four measures:

answer         exp of the mean log-prob of the answer's tokens: length-normalised
answer_joint   exp of their sum: the probability of the whole answer, given the text before it
majority       share of the samples of one prompt that have the same answer
p_true         probability that the model itself calls the answer true, in a prompt of its own (`verdict_request`)

A sample without an answer has confidence 0: there is nothing to rely on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from smallr.core.errors import UserError
from smallr.sampling.requests import MAX_LOGPROBS, Request, Sample, SamplingParams, TokenLogprob

Span = tuple[int, int]  # first character, and the one behind the last

MEASURES = ("answer", "answer_joint", "majority", "p_true")
FROM_LOGPROBS = ("answer", "answer_joint")  # of the completion itself
WITHOUT_LOGPROBS = ("majority",)
NO_VERDICT = 0.5  # where neither "true" nor "false" is among the likeliest tokens
_BROKEN = "\ufffd"  # what bytes that are no whole character decode to

VERDICT = (
    "Question: {question}\n\nProposed answer: {answer}\n\n"
    "Is the proposed answer true or false? Reply with one word, True or False."
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Represents the answer that a text gives.

    Attributes:
      value: normalised, so that equal values are equal answers.
      span: where it stands in the text.
    """

    value: str
    span: Span


# Finds the answers of several texts; None for a text without one.
Extract = Callable[[Sequence[str]], list[Answer | None]]


def token_spans(text: str, tokens: Sequence[str]) -> list[Span]:
    """Finds where each token stands in a text that was decoded from all of them.

    A token decoded alone may lack the space before it, may be part of a character, or may be no text at all (an end
    token); the last kind gets an empty span, as does what stands behind a stop string.
    """
    spans: list[Span] = []
    position = 0
    parts: list[int] = []  # tokens that are parts of characters which are not whole yet
    for index, token in enumerate(tokens):
        found = _after_parts(text, token, position) if parts else _at(text, token, position)
        if found is not None:
            for part in parts:
                spans[part] = (position, found[0])
            parts, position = [], found[1]
            spans.append(found)
            continue
        if _BROKEN in token:
            head = token.partition(_BROKEN)[0]
            position += len(head) if not parts and text.startswith(head, position) else 0
            parts.append(index)
        spans.append((position, position))
    for part in parts:
        spans[part] = (position, len(text))
    return spans


def _at(text: str, token: str, position: int) -> Span | None:
    """Returns the span of a token that stands at a position, if it does."""
    if not token or _BROKEN in token or position >= len(text):
        return None
    if text.startswith(token, position):
        return position, position + len(token)
    if text[position].isspace() and text.startswith(token, position + 1):  # decoded alone it has lost its space
        return position, position + 1 + len(token)
    bare = token.removeprefix(" ")
    if position == 0 and bare and text.startswith(bare):  # the text's first space is dropped
        return 0, len(bare)
    return (position, len(text)) if token.startswith(text[position:]) else None  # a stop string has cut it


def _after_parts(text: str, token: str, position: int) -> Span | None:
    """Returns the span of the first token behind parts of characters; these are one or more, none of which is ASCII."""
    if not token or _BROKEN in token:
        return None
    place = position
    while place < len(text) and not text[place].isascii():
        place += 1
        if text.startswith(token, place):
            return place, place + len(token)
    return None


def answer_logprobs(text: str, logprobs: Sequence[TokenLogprob], span: Span) -> list[float]:
    """Returns the log-probs of the tokens that have a character in the span; where none is found there, of all tokens.

    A server's tokens may not make up its text, for instance where it has cut reasoning out of the text alone.
    """
    spans = token_spans(text, [each.token for each in logprobs])
    first, last = span
    found = [
        each.logprob for each, (start, end) in zip(logprobs, spans, strict=True) if max(start, first) < min(end, last)
    ]
    return found or [each.logprob for each in logprobs]


def length_normalised(logprobs: Sequence[float]) -> float:
    """Returns exp of the mean log-prob; 0 for no tokens. A server may round a log-prob to above 0: 1 at most."""
    return math.exp(min(math.fsum(logprobs) / len(logprobs), 0.0)) if logprobs else 0.0


def joint(logprobs: Sequence[float]) -> float:
    """Returns exp of the sum of log-probs, 1 at most; 0 for no tokens."""
    return math.exp(min(math.fsum(logprobs), 0.0)) if logprobs else 0.0


def majority_shares(answers: Sequence[Answer | None]) -> list[float]:
    """Returns for each sample the share of all samples that have its answer; 0 for one without."""
    values = [answer.value if answer else None for answer in answers]
    return [values.count(value) / len(values) if value is not None else 0.0 for value in values]


def verdict_request(request: Request, answer: str) -> Request:
    """Asks whether an answer to a request is true: one token, with the log-probs of the likeliest ones.

    Raises:
      UserError: the prompt is token ids.
    """
    question = request.messages[-1]["content"] if request.messages else request.prompt
    if not isinstance(question, str):
        raise UserError("prompt: the confidence p_true needs a prompt that is text, not token ids")
    text = VERDICT.format(question=question, answer=answer)
    params = SamplingParams(max_tokens=1, logprobs=MAX_LOGPROBS)
    if request.messages:
        return Request(messages=({"role": "user", "content": text},), params=params)
    return Request(prompt=f"{text}\nAnswer:", params=params)


def p_true(sample: Sample) -> float:
    """Returns P(true) / (P(true) + P(false)) of the first token of a verdict, over all its spellings."""
    if not sample.logprobs:
        return NO_VERDICT
    first = sample.logprobs[0]
    likeliest = dict(reversed(first.top)) if first.top else {first.token: first.logprob}
    sums = [
        math.fsum(math.exp(value) for token, value in likeliest.items() if _begins(token, word))
        for word in ("true", "false")
    ]
    return sums[0] / sum(sums) if sum(sums) > 0 else NO_VERDICT


def _begins(token: str, word: str) -> bool:
    written = token.strip().lower()
    return bool(written) and word.startswith(written)


def measured(
    samples: Sequence[Sample], answers: Sequence[Answer | None], verdicts: Sequence[float] | None = None
) -> list[dict[str, float]]:
    """Returns all measures of the samples of one request that can be taken.

    Args:
      samples: of the request.
      answers: found in them.
      verdicts: P(true) of each, if that was asked.
    """
    found: list[dict[str, float]] = []
    shares = majority_shares(answers) if len(samples) > 1 else None
    for index, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        measures: dict[str, float] = {}
        if sample.logprobs is not None:
            values = answer_logprobs(sample.text, sample.logprobs, answer.span) if answer else []
            measures |= {"answer": length_normalised(values), "answer_joint": joint(values)}
        if shares is not None:
            measures["majority"] = shares[index]
        if verdicts is not None:
            measures["p_true"] = verdicts[index] if answer else 0.0
        found.append(measures)
    return found


def verdict_requests(
    request: Request, samples: Sequence[Sample], answers: Sequence[Answer | None]
) -> dict[str, Request]:
    """Returns the verdicts to ask for, by the answer's value: samples with one answer share one."""
    found: dict[str, Request] = {}
    for sample, answer in zip(samples, answers, strict=True):
        if answer is not None and answer.value not in found:
            first, last = answer.span
            found[answer.value] = verdict_request(request, sample.text[first:last].strip())
    return found


def verdicts_of(answers: Sequence[Answer | None], verdicts: Mapping[str, float]) -> list[float]:
    """Returns P(true) of each sample's answer, given that of each value."""
    return [verdicts[answer.value] if answer else 0.0 for answer in answers]
