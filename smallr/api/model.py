"""A model in memory: it writes, scores texts exactly, and is saved for other libraries."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from smallr.core.errors import UserError
from smallr.core.programs import keep_programs
from smallr.core.sharding import make_mesh
from smallr.data.batch import Completion, Example
from smallr.data.errors import nearest
from smallr.data.packing import RowShape, Sizes
from smallr.data.tokenize import TokenizeOptions, tokenize
from smallr.language.advantages import Advantage, open_advantage
from smallr.models.decoder import Decoder
from smallr.models.loading import ModelSource, load_decoder
from smallr.sampling.engine import Engine
from smallr.sampling.files import Prompt, as_requests
from smallr.sampling.prompts import end_ids
from smallr.sampling.requests import SamplingParams
from smallr.training.exporting import convert
from smallr.training.opening import open_trained, source_of
from smallr.training.saved import find_run
from smallr.training.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]
Chat = Sequence[Message]
Logps = Float[np.ndarray, "completions"] | list[Float[np.ndarray, "scored"]]

TOKENS_PER_BATCH = 8192  # of rows that are scored at once
TOKENS_PER_ROW = 2048  # of a prompt and several completions; a longer single completion has a longer row
SHORTEST = 64  # tokens of a row, at least


def load(
    name: str | os.PathLike[str],
    *,
    tokenizer: str = "",
    dtype: str = "float32",
    decode_slots: int = 32,
    max_length: int | None = None,
    advantage: str | os.PathLike[str] = "",
    beta: float = 1.0,
) -> Model:
    """Loads a model over all devices.

    Examples:
      >>> model = load("tiny-random")
      >>> model.config.num_layers
      2

    Args:
      name: a run's workdir (its newest intact checkpoint), one of its checkpoints' folders, an adapter in PEFT's format
        (adapters are merged), a folder in Hugging Face layout, a .gguf file, a hub id, or a built-in model.
      tokenizer: a folder or hub id whose tokenizer comes in place of the model's own.
      dtype: of the computation, float32 or bfloat16; parameters are float32.
      decode_slots: completions that `generate` writes at once.
      max_length: tokens of a prompt and its completion in `generate`; None is the model's context, at most 4096.
      advantage: a run with Q heads, by whose advantages `generate` scores tokens: log pi + beta (Q - V).
      beta: how many nats an advantage of 1 is worth; 0 leaves the model as it is.

    Raises:
      UserError: no such model, or one that cannot be loaded; heads of another model.
    """
    keep_programs()
    steered = open_advantage(os.fspath(advantage), beta) if advantage else None
    name = os.fspath(name)
    run = find_run(Path(name).expanduser())
    # The checkpoint is pinned, so that a run that goes on meanwhile changes nothing here.
    source = source_of(run, str(run.checkpoint.folder), tokenizer) if run else open_trained(name, tokenizer)
    mesh = make_mesh(1, 1, -1)
    with jax.set_mesh(mesh):
        decoder = load_decoder(source, mesh, dtype=dtype)
    return Model(
        source,
        decoder,
        mesh,
        tokenizer=tokenizer,
        decode_slots=decode_slots,
        max_length=max_length,
        advantage=steered,
    )


class Model:
    """A model that `load` has loaded.

    Attributes:
      source: its name and files.
      decoder, config: the Flax module, and its sizes.
      tokenizer: its own.
    """

    def __init__(
        self,
        source: ModelSource,
        decoder: Decoder,
        mesh: Mesh,
        *,
        tokenizer: str = "",
        decode_slots: int = 32,
        max_length: int | None = None,
        advantage: Advantage | None = None,
    ):
        """Takes an open model; see `load` for the last four."""
        self.source, self.decoder, self.config, self._mesh = source, decoder, decoder.config, mesh
        self.tokenizer: PreTrainedTokenizerFast = source.tokenizer()
        self._tokenizer_name, self._decode_slots, self._max_length = tokenizer, decode_slots, max_length
        self._advantage = advantage

    def __repr__(self) -> str:
        return (
            f"<smallr model {self.source.name}, {self.config.num_params / 1e6:.1f} M parameters, {self.config.dtype}>"
        )

    @functools.cached_property
    def engine(self) -> Engine:
        """Returns the sampling engine, made when it is first asked for: `generate` with all that results hold."""
        with jax.set_mesh(self._mesh):
            steered = self._advantage
            options = steered.engine_options(self.decoder, self.tokenizer, self._mesh) if steered else {}
            return Engine(
                self.decoder,
                self.tokenizer,
                self._mesh,
                decode_slots=self._decode_slots,
                max_length=self._max_length,
                end_ids=end_ids(self.source),
                **options,
            )

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.decoder, self._mesh)

    def generate(
        self,
        prompts: str | Chat | Sequence[str | Chat],
        *,
        chat: bool | None = None,
        progress: bool = False,
        **params: Any,
    ) -> Any:
        """Writes completions.

        Examples:
          >>> model = load("tiny-random")
          >>> len(model.generate(["What is 2 + 3?", "Who are you?"], max_tokens=4))
          2
          >>> reply = model.generate([{"role": "user", "content": "Hi!"}], max_tokens=4)
          >>> len(model.generate(["Hi!"], n=2, temperature=1.0, seed=1, max_tokens=4)[0])
          2

        Args:
          prompts: a text, a chat (messages with role and content), or a list of several of either.
          chat: whether texts are messages of a user; None: if the model has a chat template.
          progress: show a bar on a terminal.
          **params: fields of `smallr.sampling.requests.SamplingParams`: max_tokens, temperature, top_k, top_p, min_p, n,
            stop, seed, … By default the likeliest token is taken.

        Returns:
          The text that follows the prompt; a list of texts for a list of prompts. With n > 1 each text is a list of n.

        Raises:
          UserError: a parameter that does not exist or is out of its range, or a prompt that cannot be served.
        """
        single = isinstance(prompts, str) or _is_chat(prompts)
        texts = [_prompt(each) for each in ([prompts] if single else prompts)]
        requests = as_requests(texts, _sampling(params), chat=self._is_chat(chat))
        results = self.engine.generate(requests, progress=progress)
        for number, result in enumerate(results):
            if result.error:
                raise UserError(f"generate: prompt {number}: {result.error}")
        found = [[sample.text for sample in result.samples] for result in results]
        replies = [each if len(each) > 1 else each[0] for each in found]
        return replies[0] if single else replies

    def logps(
        self,
        prompts: str | Chat | Sequence[str | Chat],
        completions: Sequence[str] | Sequence[Sequence[str]],
        *,
        chat: bool | None = None,
        per_token: bool = False,
    ) -> Logps | list[Logps]:
        """Computes log-probs of given completions, exactly; the prompt is read once for all of them.

        They are those that training computes: scored are the tokens of the completion and the end token behind it, and a
        prompt and its completion are tokenised as one text.

        Examples:
          >>> model = load("tiny-random")
          >>> logps = model.logps("What is 2 + 3?", ["5", "The answer is 6."])
          >>> logps.shape, bool((logps < 0).all())
          ((2,), True)
          >>> tokens = model.logps("What is 2 + 3?", ["5", "The answer is 6."], per_token=True)
          >>> bool(abs(sum(tokens[0]) - logps[0]) < 1e-5)
          True

        Args:
          prompts: a text or a chat, or a list of several of either, which may have different numbers of completions.
          completions: texts; for a list of prompts a list for each of them.
          chat: whether texts are a user's message and the replies to it; None: if the model has a chat template.
          per_token: give the log-prob of each scored token in place of the sums.

        Returns:
          Sums in nats, [completions]; with `per_token` an array [scored] for each completion. A list of these for a list
          of prompts.

        Raises:
          UserError: an empty prompt or completion, or one that is longer than the model's context.
        """
        single = isinstance(prompts, str) or _is_chat(prompts)
        if single:
            prompts, completions = [prompts], [completions]
        if len(prompts) != len(completions) or any(isinstance(each, str) for each in completions):
            raise UserError(
                f"logps: {len(prompts)} prompt(s) and {len(completions)} completions: give a list of completions for each "
                "prompt"
            )
        rows = [{"prompt": _row(p), "completions": list(c)} for p, c in zip(prompts, completions, strict=True)]
        scored = self._token_logps(self._tokenised(rows, chat))
        found = [each if per_token else np.asarray([x.sum(dtype=np.float64) for x in each]) for each in scored]
        return found[0] if single else found

    def _tokenised(self, rows: Sequence[Mapping[str, Any]], chat: bool | None) -> list[Example]:
        """Tokenises rows of a prompt and its completions as training does.

        Raises:
          UserError: a row that cannot be used, or is longer than the model's context.
        """
        # Completions of a prompt may together be longer than the context: each of them may not.
        options = TokenizeOptions("completions", sys.maxsize, chat=self._is_chat(chat))
        with tempfile.TemporaryDirectory(prefix="smallr-logps-") as folder:
            found = tokenize(_dataset(rows), self.tokenizer, options, source="logps", cache=Path(folder))
            examples = list(found)
            longest = int((found.prefix_lengths + found.completion_lengths.max(1)).max())
        if found.report.dropped:
            raise UserError(f"logps: prompts that cannot be scored, counted from 0: {found.report}")
        if longest > self.config.max_positions:
            raise UserError(
                f"logps: a prompt with its completion has {longest} tokens, over the {self.config.max_positions} of the "
                "model's context: shorten it"
            )
        return examples

    def _token_logps(self, examples: Sequence[Example]) -> list[list[Float[np.ndarray, "scored"]]]:
        """Scores examples, in their order; rows have few sizes, so that few programs are compiled."""
        parts = [part for example in examples for part in _split(example)]
        sizes = Sizes.of(parts)
        tokens = sizes.tokens(share_prompt=True)
        length = _power(int(tokens.max()), SHORTEST)
        chosen = RowShape.choose(sizes, length)
        shape = RowShape(length, *(_power(size) for size in (chosen.scored, chosen.examples, chosen.completions)))
        rows = min(max(TOKENS_PER_BATCH // length, 1), _power(-(-int(tokens.sum()) // length)))
        found: list[list[Float[np.ndarray, "scored"]]] = [[] for _ in examples]
        scored = dict(self._scorer.token_logps(parts, rows=rows, row_length=length, shape=shape))
        for index, part in enumerate(parts):
            found[part.row] += scored[index]
        return found

    def save_hf(self, folder: str | os.PathLike[str], *, dtype: str = "bfloat16", shard_size: str = "5GB") -> Path:
        """Writes the model for transformers, vLLM and llama.cpp: weights, config, tokenizer and a model card.

        Examples:
          >>> import tempfile
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     saved = load("tiny-random").save_hf(folder + "/exported", dtype="float32")
          ...     print((saved / "config.json").is_file())
          True

        Args:
          folder: that is not there yet, or empty; it appears when it is complete.
          dtype: of the stored weights: bfloat16, float32 (exact) or float16.
          shard_size: largest weight file.

        Returns:
          The folder.

        Raises:
          UserError: the folder is not empty, or the format cannot express the model.
        """
        target = Path(folder)
        convert(self.source.name, target, dtype=dtype, shard_size=shard_size, tokenizer=self._tokenizer_name)
        return target

    def _is_chat(self, chat: bool | None) -> bool:
        return bool(self.tokenizer.chat_template) if chat is None else chat


def _split(example: Example) -> list[Example]:
    """Shares the completions of an example out among examples of the same prompt that rows can hold."""
    groups: list[list[Completion]] = [[]]
    room = TOKENS_PER_ROW - len(example.prefix)
    for completion in example.completions:
        length = len(completion.tokens)
        if groups[-1] and length > room:
            groups.append([])
            room = TOKENS_PER_ROW - len(example.prefix)
        groups[-1].append(completion)
        room -= length
    return [dataclasses.replace(example, completions=tuple(group)) for group in groups]


def _is_chat(prompt: Any) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _prompt(prompt: str | Chat) -> Prompt:
    return prompt if isinstance(prompt, str) else tuple(dict(message) for message in prompt)


def _row(prompt: str | Chat) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _dataset(rows: Sequence[Mapping[str, Any]]) -> datasets.Dataset:
    if len({isinstance(row["prompt"], str) for row in rows}) > 1:
        raise UserError("logps: prompts must all be texts or all be chats")
    if not rows:
        raise UserError("logps: give at least one prompt")
    return datasets.Dataset.from_list([dict(row) for row in rows])


def _sampling(params: dict[str, Any]) -> SamplingParams:
    known = SamplingParams.__dataclass_fields__
    if unknown := sorted(set(params) - set(known)):
        raise UserError(
            f"generate: no parameter {unknown[0]!r}{nearest(unknown[0], known)}; there is {', '.join(known)}"
        )
    for name in ("stop", "stop_token_ids"):
        if name in params:
            value = params[name]
            params[name] = (value,) if isinstance(value, str | int) else tuple(value)
    try:
        return SamplingParams(**params)
    except ValueError as error:
        raise UserError(str(error)) from error


def _power(count: int, least: int = 1) -> int:
    """Returns the power of two, at least `least`, that holds so many."""
    return max(least, 1 << max(count - 1, 0).bit_length())
