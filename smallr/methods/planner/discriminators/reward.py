"""Judges by a reward head: the value of the state behind a plan, all plans of a problem behind one prompt."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
from jax.sharding import Mesh

from smallr.data.drops import DropReport
from smallr.data.encode import Encoder
from smallr.data.formats import read_as
from smallr.data.token_set import TokenSet
from smallr.data.tokenize import ExampleMaker, TokenizeOptions
from smallr.methods.planner.discriminators.base import Case, Judgement
from smallr.methods.planner.prompts import RewardPrompt
from smallr.models.decoder import Decoder
from smallr.training.objectives.outcome import values_at_tokens
from smallr.training.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Reward:
    """Scores plans by sigmoid(V) at their end token, as the objective `outcome` trains it.

    Plans are tokenised as in training: the prompt once, each plan as a completion with its end token.

    Args:
      decoder, tokenizer, mesh: an open model with a value head.
      prompt: writes the prompts.
      identity: of the model, for `digest`.
      chat: whether prompts and plans are messages, as `config.data.chat` of the run says.
      rows: packed rows a step.
      row_length: tokens of a row; a problem that no row holds is judged plan by plan, and a longer plan not at all.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        mesh: Mesh,
        prompt: RewardPrompt,
        *,
        identity: str,
        chat: bool,
        rows: int = 1,
        row_length: int = 2048,
    ):
        self._tokenizer, self._prompt, self._chat = tokenizer, prompt, chat
        self._identity, self._rows = identity, rows
        self._row_length = min(row_length, decoder.config.max_positions)
        self._scorer = Scorer(decoder, mesh, read=values_at_tokens)

    @property
    def digest(self) -> str:
        """See `Discriminator.digest`."""
        return f"reward {self._identity} {self._prompt.digest} {self._chat}"

    def judge(self, cases: Sequence[Case]) -> Iterator[tuple[int, list[Judgement]]]:
        """See `Discriminator.judge`."""
        whole = [(index, list(range(len(case.plans)))) for index, case in enumerate(cases) if case.plans]
        found: dict[int, dict[int, Judgement]] = {index: {} for index in range(len(cases))}
        left = self._judge_rows(cases, whole, found)
        singles = [(index, [plan]) for index, plans in left for plan in plans]
        too_long = self._judge_rows(cases, [each for each in singles if len(cases[each[0]].plans) > 1], found)
        for index, plans in [*too_long, *(each for each in singles if len(cases[each[0]].plans) == 1)]:
            found[index][plans[0]] = Judgement(
                error=f"prompt and plan are more than a row of {self._row_length} tokens holds"
            )
        for index, judgements in found.items():
            yield index, [judgements[plan] for plan in range(len(judgements))]

    def _judge_rows(
        self, cases: Sequence[Case], parts: Sequence[tuple[int, list[int]]], found: dict[int, dict[int, Judgement]]
    ) -> list[tuple[int, list[int]]]:
        """Judges plans of cases, each part behind one prompt, and returns the parts that no row holds."""
        if not parts:
            return []
        texts = [
            {
                "prompt": self._prompt.render(cases[index].problem),
                "completions": [cases[index].plans[plan] for plan in plans],
            }
            for index, plans in parts
        ]
        done = set()
        with tempfile.TemporaryDirectory() as folder:
            examples = self._tokenised(Path(folder) / "tokens", datasets.Dataset.from_list(texts))
            scored = (
                self._scorer.token_logps(examples, rows=self._rows, row_length=self._row_length) if examples else ()
            )
            for number, values in scored:
                row = int(examples.rows[number])
                done.add(row)
                index, plans = parts[row]
                length = len(examples[number].prefix)
                for plan, each in zip(plans, values, strict=True):
                    probability = 1.0 / (1.0 + math.exp(-float(each[-1])))
                    found[index][plan] = Judgement(probability > 0.5, probability, prompt_tokens=length + len(each))
        return [part for number, part in enumerate(parts) if number not in done]

    def _tokenised(self, folder: Path, rows: datasets.Dataset) -> TokenSet | None:
        """Makes the tokens as training does; None where no row of the scorer holds any example."""
        options = TokenizeOptions("completions", self._row_length, chat=self._chat)
        reading = read_as(options.kind, rows.column_names, rows, "candidates", "")
        maker = ExampleMaker(Encoder(self._tokenizer), self._tokenizer, options, reading)
        report = maker.write(folder, rows, DropReport("candidates", self._row_length))
        return TokenSet(folder) if report.kept else None
