"""Judges without reasoning: P("Yes") in one forward pass, all plans of a problem in one packed row."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jax.sharding import Mesh

from smallr.core.errors import panics_as_errors
from smallr.data import token_set
from smallr.data.batch import ROLE_ANSWER, ROLE_NONE, Completion, Example
from smallr.data.drops import DropReport
from smallr.data.token_set import TokenSet
from smallr.methods.planner.discriminators.base import Case, Judgement
from smallr.methods.planner.prompts import JudgePrompt
from smallr.models.decoder import Decoder
from smallr.training.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

YES = "Yes"
ANSWER = "\nAnswer:"  # behind a plain prompt


class YesNo:
    """Scores plans by the probability that the answer begins with "Yes".

    A problem's prompts are tokenised whole, one by one. The tokens that all of them begin with (schema, question, the
    first words of the plans) are the prompt of an example; the rest of each is a completion, whose last token, "Yes",
    is the only one that is scored. So the packed row and single rows have the same tokens.

    Args:
      decoder, tokenizer, mesh: an open model.
      prompt: writes the prompts.
      identity: of the model, for `digest`.
      chat: whether prompts are messages of a user; else plain text that ends in "Answer:".
      rows: packed rows a step.
      row_length: tokens of a row; a problem that no row holds is judged plan by plan, and a longer plan not at all.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        mesh: Mesh,
        prompt: JudgePrompt,
        *,
        identity: str,
        chat: bool,
        rows: int = 1,
        row_length: int = 2048,
    ):
        self._tokenizer, self._prompt, self._chat = tokenizer, prompt, chat
        self._identity, self._rows = identity, rows
        self._row_length = min(row_length, decoder.config.max_positions)
        self._scorer = Scorer(decoder, mesh, chunk=4096)

    @property
    def digest(self) -> str:
        """See `Discriminator.digest`."""
        return f"yes_no {self._identity} {self._prompt.digest} {self._chat}"

    def judge(self, cases: Sequence[Case]) -> Iterator[tuple[int, list[Judgement]]]:
        """See `Discriminator.judge`."""
        tokens = [self.encode(case) for case in cases]
        wanted = {index: len(each) for index, each in enumerate(tokens)}
        found: dict[int, dict[int, Judgement]] = {index: {} for index in wanted}
        examples, members = self._examples(tokens, found)
        for example, plans, probabilities in self._probabilities(examples, members):
            for plan, probability in zip(plans, probabilities, strict=True):
                count = len(tokens[example][plan]) - 1
                found[example][plan] = Judgement(probability > 0.5, probability, prompt_tokens=count)
            if len(found[example]) == wanted[example]:
                yield example, [found[example].pop(plan) for plan in range(wanted.pop(example))]
        for index, count in wanted.items():  # those of which no row holds any plan
            yield index, [found[index][plan] for plan in range(count)]

    def encode(self, case: Case) -> list[list[int]]:
        """Returns the tokens of each plan's prompt, with "Yes" behind it."""
        texts = [self._prompt.render(case.problem, *pair) for pair in zip(case.plans, case.outcomes, strict=True)]
        if not self._chat:
            return [self._tokens(f"{text}{ANSWER} {YES}", special=True) for text in texts]
        return [self._tokens(self._chat_text(text) + YES, special=False) for text in texts]

    def _chat_text(self, text: str) -> str:
        messages = [{"role": "user", "content": text}]
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        with panics_as_errors("the prompt of the discriminator"):
            return self._tokenizer(text, add_special_tokens=special)["input_ids"]

    def _examples(
        self, tokens: Sequence[Sequence[Sequence[int]]], found: dict[int, dict[int, Judgement]]
    ) -> tuple[list[Example], list[tuple[int, list[int]]]]:
        """Makes examples of what fits a row; what does not is judged as too long."""
        examples, members = [], []
        for index, prompts in enumerate(tokens):
            fitting = [plan for plan, ids in enumerate(prompts) if len(ids) <= self._row_length]
            for plan in set(range(len(prompts))).difference(fitting):
                count = len(prompts[plan])
                found[index][plan] = Judgement(error=f"{count} tokens are more than a row of {self._row_length} holds")
            shared = _common([prompts[plan] for plan in fitting]) if fitting else 0
            total = shared + sum(len(prompts[plan]) - shared for plan in fitting)
            parts = [fitting] if total <= self._row_length else [[plan] for plan in fitting]
            for part in filter(None, parts):
                examples.append(_example([prompts[plan] for plan in part], len(members)))
                members.append((index, part))
        return examples, members

    def _probabilities(
        self, examples: Sequence[Example], members: Sequence[tuple[int, list[int]]]
    ) -> Iterator[tuple[int, list[int], list[float]]]:
        if not examples:
            return
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "tokens"
            token_set.write(target, examples, DropReport("candidates", max_length=self._row_length))
            found = self._scorer.token_logps(TokenSet(target), rows=self._rows, row_length=self._row_length)
            for index, logps in found:
                case, plans = members[index]
                yield case, plans, [math.exp(float(each[0])) for each in logps]


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with; at least two remain of each, so that none is a mere "Yes"."""
    count = 0
    for column in zip(*(prompt[:-2] for prompt in prompts), strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return max(count, 1)


def _example(prompts: Sequence[Sequence[int]], row: int) -> Example:
    shared = _common(prompts)
    completions = []
    for prompt in prompts:
        rest = np.asarray(prompt[shared:], np.int32)
        roles = np.full(len(rest), ROLE_NONE, np.int32)
        roles[-1] = ROLE_ANSWER
        completions.append(Completion(rest, roles))
    return Example(np.asarray(prompts[0][:shared], np.int32), tuple(completions), {}, row)
