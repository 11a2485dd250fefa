"""Asks a frozen student in either order: its prompts, what it writes read back, and its likelihoods."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.sharding import Mesh

from smallr.core.errors import UserError
from smallr.data.batch import ROLE_ANSWER, ROLE_NONE
from smallr.data.chat import Renderer, separator
from smallr.data.encode import Encoder
from smallr.data.orders import FORMATS
from smallr.data.rows import RationaleRow
from smallr.data.templates import Marked, Span, Unrenderable
from smallr.evals.likelihood import LikelihoodScorer
from smallr.methods.adaptive.interface import MODES, Answer, Answers, Mode
from smallr.models.decoder import Decoder
from smallr.sampling.engine import Engine
from smallr.sampling.requests import Request, Result, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ORDER_OF: Mapping[Mode, str] = {"answer": "answer_first", "think": "rationale_first"}
Prompt = tuple[int, ...]


class Student:
    """Answers in the mode that it is asked in; `smallr.methods.adaptive.interface.Answering`.

    Args:
      decoder: on the mesh, with soft prompts where `prompts` has soft tokens.
      tokenizer: its own.
      mesh: of the decoder.
      formats: of the two orders, as the student was trained with.
      chat: whether questions are messages of a user.
      prompts: soft tokens in front of the prompts of each mode; none: the formats alone tell the modes apart.
      decode_slots: the completions that grow at once.
      max_length: tokens of prompt and completion together.
      end_ids: tokens that end a completion besides the tokenizer's own.

    Raises:
      UserError: a format without a separator, or without what the tokenizer needs.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        mesh: Mesh,
        *,
        formats: Mapping[str, str] = FORMATS,
        chat: bool = False,
        prompts: Mapping[Mode, Sequence[int]] | None = None,
        decode_slots: int = 32,
        max_length: int | None = None,
        end_ids: Sequence[int] = (),
    ):
        self.decoder, self.tokenizer, self.mesh, self.chat = decoder, tokenizer, mesh, chat
        self.formats = {**FORMATS, **formats}
        self._separators = {mode: separator(self.formats[order]) for mode, order in ORDER_OF.items()}
        for mode, mark in self._separators.items():
            if not mark:
                raise UserError(
                    f"format {self.formats[ORDER_OF[mode]]!r}: nothing stands between the answer and the rationale, so that "
                    "they cannot be told apart in what the student writes"
                )
        self.engine = Engine(
            decoder, tokenizer, mesh, decode_slots=decode_slots, max_length=max_length, end_ids=end_ids
        )
        self.scorer = LikelihoodScorer(decoder, tokenizer, mesh, max_length=self.engine.max_length)
        self._renderer = Renderer(tokenizer, chat=chat, formats=self.formats)
        self._encoder = Encoder(tokenizer)
        self._prompts = {mode: tuple(map(int, (prompts or {}).get(mode, ()))) for mode in MODES}

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns tokens of prompts that a renderer of this student wrote."""
        return self._encoder.prompts(texts, is_chat=self.chat)

    def answer(
        self,
        questions: Sequence[str],
        modes: Sequence[Mode],
        *,
        early_stop: bool = True,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answers:
        """Answers as `Answering.answer` says."""
        start = time.perf_counter()
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        requests, indices = [], []
        items = [Answer(mode, "", "", "", 0, 0, False) for mode in modes]
        for index, (question, mode) in enumerate(zip(questions, modes, strict=True)):
            try:
                ids = self._prompt(question, mode)
            except Unrenderable as error:
                items[index] = dataclasses.replace(items[index], error=str(error))
                continue
            stop = (self._separators[mode],) if early_stop and mode == "answer" else ()
            requests.append(Request(prompt=ids, params=dataclasses.replace(params, stop=stop)))
            indices.append(index)
        results = self.engine.generate(requests, progress=False)
        for index, result in zip(indices, results, strict=True):
            items[index] = self._read(modes[index], result)
        return Answers(tuple(items), time.perf_counter() - start)

    def answer_nll(
        self, questions: Sequence[str], answers: Sequence[str], rationales: Sequence[str] | None = None
    ) -> list[float]:
        """Computes `Answering.answer_nll`."""
        mode: Mode = "answer" if rationales is None else "think"
        rationales = [""] * len(questions) if rationales is None else rationales
        rows = [
            RationaleRow(i, question, answer, rationale or None)
            for i, (question, answer, rationale) in enumerate(zip(questions, answers, rationales, strict=True))
        ]
        marked = {row.row: text for row in rows if row.answer and (text := self._marked(row, mode)) is not None}
        values = [math.nan] * len(rows)
        indices, pairs = [], []
        for index, completion in zip(marked, self._encoder(list(marked.values())), strict=True):
            scored = completion.roles == ROLE_ANSWER
            if not self.chat:
                scored[-1] = ROLE_NONE  # EOS, which has the last span's role
            (where,) = np.nonzero(scored)
            pair = [*self._prompts[mode], *completion.tokens[: where[0]].tolist()], completion.tokens[where].tolist()
            if sum(map(len, pair)) <= self.scorer.max_length:
                indices.append(index)
                pairs.append(pair)
        for index, pair, (logp, _) in zip(indices, pairs, self.scorer.score_tokens(pairs), strict=True):
            values[index] = -logp / len(pair[1])
        return values

    def _prompt(self, question: str, mode: Mode) -> Prompt:
        (ids,) = self.encoded([self._renderer.prompt(question.strip(), ORDER_OF[mode])])
        return (*self._prompts[mode], *ids)

    def _read(self, mode: Mode, result: Result) -> Answer:
        """Splits what was written at the first separator, which no first part contains."""
        if result.error:
            return Answer(mode, "", "", "", 0, 0, False, result.error)
        (sample,) = result.samples
        first, found, second = sample.text.partition(self._separators[mode])
        ended = sample.finish_reason == "stop"
        if mode == "answer":
            answer, rationale, complete = first, second, ended or bool(found)
        else:
            answer, rationale, complete = second, first, ended and bool(found)
        usage = result.usage
        return Answer(
            mode=mode,
            answer=answer.strip(),
            rationale=rationale.strip(),
            text=sample.text,
            tokens=usage.completion_tokens,
            prompt_tokens=usage.prompt_tokens,
            complete=complete,
        )

    def _marked(self, row: RationaleRow, mode: Mode) -> Marked | None:
        """Returns the row's text with the answer's own characters alone as a span; None where it cannot be written."""
        try:
            (marked,) = self._renderer.rationale_row(row, ORDER_OF[mode])
        except Unrenderable:
            return None
        span = next(span for span in marked.spans if span.role == ROLE_ANSWER)
        at = marked.text.find(row.answer.strip(), span.start, span.end)
        end = span.end if at < 0 else at + len(row.answer.strip())
        return dataclasses.replace(marked, spans=(Span(span.start, end, ROLE_ANSWER),))
