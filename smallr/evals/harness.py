"""Offers smallr's models to lm-evaluation-harness (extra `lm-eval`) as the model type `smallr`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from smallr.core.errors import UserError
from smallr.data.templates import DATE, parse_date, with_date
from smallr.evals.likelihood import TOKENS_PER_BATCH, LikelihoodScorer
from smallr.sampling.requests import Request, SamplingParams

MAX_NEW_TOKENS = 256  # where a task does not say, as the harness has it
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_KNOWN = {"until", "do_sample", "max_gen_toks", *_SAMPLING}


@register_model("smallr")
class SmallrLM(TemplateLM):
    """Wraps a local model for the harness: likelihoods by `LikelihoodScorer`, generations by `Engine`.

    A context that is too long loses its beginning, as with the harness' own models (`hf`).
    """

    def __init__(
        self,
        path: str,
        dtype: str = "float32",
        max_length: int | None = None,
        batch_size: int | str | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        decode_slots: int = 32,
        **_: Any,
    ):
        """Opens a model.

        Args:
          path: a run, a folder, a .gguf file, a built-in name or a hub id.
          dtype: float32 or bfloat16.
          max_length: tokens of context and continuation; the model's context by default.
          batch_size: not used; batches are measured in tokens.
          tokens_per_batch: of likelihoods.
          decode_slots: sequences decoded at once.
          **_: `device`, `max_batch_size`, which the harness passes to all models.

        Raises:
          UserError: no such model.
        """
        super().__init__()
        from smallr.core.sharding import make_mesh
        from smallr.language.loading import load_trained

        self._mesh, self._decode_slots = make_mesh(1, 1, -1), decode_slots
        with jax.set_mesh(self._mesh):
            source, self._decoder = load_trained(path, self._mesh, dtype=dtype)
        self.tokenizer, self._path, self._engine = source.tokenizer(), path, None
        self._scorer = LikelihoodScorer(
            self._decoder,
            self.tokenizer,
            self._mesh,
            max_length=None if max_length is None else int(max_length),
            tokens_per_batch=int(tokens_per_batch),
        )

    @property
    def eot_token_id(self) -> int:
        """Returns the token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Returns what stands before a text without a context."""
        return self._scorer.prefix_token

    @property
    def max_length(self) -> int:
        """Returns tokens that the model reads."""
        return self._scorer.max_length

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer for the harness' cache."""
        return self._path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a chat as text, which is the same on every day."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            chat_template=with_date(self.tokenizer.get_chat_template(), parse_date(DATE)),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the tokens of a text."""
        return self._scorer.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self._scorer.encode_pair(context, continuation)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        values = self._scorer.score_tokens([self._cut(context, continuation) for _, context, continuation in requests])
        for (pair, _, _), value in zip(requests, values, strict=True):
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, value)
        return values

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], list[int]]:
        """Returns the last tokens of both that fit."""
        kept = [*context, *continuation][-(self.max_length + 1) :]
        split = max(len(kept) - len(continuation), 1)
        return kept[:split], kept[split:]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Computes log-likelihoods of whole texts, each token predicted once, in windows of the model's context."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            (text,) = request.args
            rolled = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, rolled):
                windows.append(window)
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._scorer.score_tokens(windows), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns completions up to the first of the stop texts.

        Raises:
          UserError: the engine refuses a request, or a task asks for something that it does not have.
        """
        from smallr.sampling.engine import Engine

        if self._engine is None:
            self._engine = Engine(
                self._decoder, self.tokenizer, self._mesh, decode_slots=self._decode_slots, max_length=self.max_length
            )
        asked = [self._request(*request.args) for request in requests]
        texts = []
        for request, made, result in zip(requests, asked, self._engine.generate(asked), strict=True):
            if result.error is not None:
                raise UserError(f"generation: {result.error}")
            text = postprocess_generated_text(result.samples[0].text, list(made.params.stop), None)
            self.cache_hook.add_partial("generate_until", request.args, text)
            texts.append(text)
        return texts

    def _request(self, context: str, options: dict[str, Any]) -> Request:
        """Returns one generation: the tokens of the context, from the left as many as leave room for the answer."""
        wanted = normalize_gen_kwargs(options, MAX_NEW_TOKENS)
        if unknown := sorted(set(wanted) - _KNOWN):
            raise UserError(f"generation_kwargs: {', '.join(unknown)} is not known to smallr")
        stop, limit = tuple(text for text in wanted["until"] or () if text), wanted["max_gen_toks"]
        sampling = {name: wanted[name] for name in _SAMPLING if wanted["do_sample"] and wanted.get(name) is not None}
        ids = self.tok_encode(context)[-max(self.max_length - limit, 1) :]
        return Request(prompt=tuple(ids), params=SamplingParams(max_tokens=limit, stop=stop, **sampling))
