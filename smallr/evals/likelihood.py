"""Computes log-likelihoods of given texts under a local decoder, with the tokenisation of lm-evaluation-harness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from smallr.core.errors import panics_as_errors
from smallr.models.decoder import Decoder
from smallr.models.linear import precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENS_PER_BATCH = 8192
LOGITS_AT_ONCE = 512  # scored tokens whose logits are held
SHORTEST, FEWEST = 64, 8  # tokens of a row and scored ones; the sizes above are few, so that few programs are compiled

Ids = Sequence[int]


class LikelihoodScorer:
    """Scores continuations of contexts.

    Continuations of one context, such as the choices of a question, share it: a row is `[context][continuation]…`, laid out
    by the one visibility rule of `data.batch`. Only the last token of a continuation is left out, since it is predicted
    and predicts nothing: so a context may be as long as the model can read.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        mesh: Mesh,
        *,
        max_length: int | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ):
        """Takes an open model.

        Args:
          decoder: on the mesh; its dtype is that of the computation.
          tokenizer: the model's.
          mesh: of the decoder's parameters.
          max_length: tokens of context and continuation together; None is the model's context.
          tokens_per_batch: rows times their length, padding included.
        """
        self.tokenizer, self._mesh, self._budget = tokenizer, mesh, tokens_per_batch
        self.max_length = max_length or decoder.config.max_positions
        graphdef, self._params = nnx.split(decoder)
        self._run = partial(_score, graphdef, LOGITS_AT_ONCE)

    def update(self, decoder: Decoder) -> None:
        """Takes other weights of the same structure; nothing is compiled again."""
        _, self._params = nnx.split(decoder)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Returns the sum of log-probs of each continuation given its context (nats), and whether greedy decoding would write it.

        A pair that is longer than the context gets (NaN, False): nothing is cut.
        """
        encoded = [self.encode_pair(context, continuation) for context, continuation in pairs]
        fits = [index for index, (context, continuation) in enumerate(encoded) if self._fits(context, continuation)]
        values: list[tuple[float, bool]] = [(math.nan, False)] * len(pairs)
        for index, value in zip(fits, self.score_tokens([encoded[index] for index in fits]), strict=True):
            values[index] = value
        return values

    def _fits(self, context: Ids, continuation: Ids) -> bool:
        return len(context) + len(continuation) <= self.max_length + 1  # the last token is only predicted

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns tokens of both, at least one each side.

        Spaces at the context's end move to the continuation; both are tokenised as one text, which is split where the
        tokens of the context alone end. An empty context is the model's first token (BOS, else EOS).
        """
        if not context:
            return [self.prefix_token], self.encode(continuation)
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        whole, alone = self.encode(context + continuation), self.encode(context)
        return alone, whole[len(alone) :]

    @property
    def prefix_token(self) -> int:
        """Returns what stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, with those that the tokenizer adds."""
        # A text that begins with BOS, as chat templates make it, does not get a second one.
        begins = text.startswith(self.tokenizer.decode([self.prefix_token]))
        with panics_as_errors(f"the text that begins with {text[:40]!r}"):
            return list(self.tokenizer.encode(text, **({"add_special_tokens": False} if begins else {})))

    def score_tokens(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
        """Computes `loglikelihood` of tokens; contexts have at least one.

        Raises:
          ValueError: an empty context, or more tokens than the model can read.
        """
        for context, continuation in pairs:
            if not context or not self._fits(context, continuation):
                raise ValueError(
                    f"{len(context)} and {len(continuation)} tokens: expected at least 1 and no more than fit"
                )
        values: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)  # of an empty continuation
        rows = _Row.of([(index, *pair) for index, pair in enumerate(pairs) if pair[1]], self.max_length)
        by_shape: dict[tuple[int, int], list[_Row]] = {}
        for row in rows:
            by_shape.setdefault((_length(row.length), _size(row.scored, FEWEST)), []).append(row)
        for (length, scored_positions), same in sorted(
            by_shape.items(), reverse=True
        ):  # the largest first: memory fails at once
            count = max(self._budget // length, 1)
            for start in range(0, len(same), count):
                self._score_batch(same[start : start + count], count, length, scored_positions, values)
        return values

    def _score_batch(
        self, rows: list[_Row], count: int, length: int, scored_positions: int, values: list[tuple[float, bool]]
    ) -> None:
        count = min(count, _size(len(rows), 1))
        arrays = {name: np.zeros((count, length), np.int32) for name in ("tokens", "positions", "horizon")}
        scored = {name: np.zeros((count, scored_positions), np.int32) for name in ("logit_position", "target")}
        for index, row in enumerate(rows):
            row.fill({name: array[index] for name, array in {**arrays, **scored}.items()})
        with jax.set_mesh(self._mesh):
            logps, greedy = map(np.asarray, self._run(self._params, *arrays.values(), *scored.values()))
        for index, row in enumerate(rows):
            for pair, first, last in row.spans:
                values[pair] = (
                    float(logps[index, first:last].sum(dtype=np.float64)),
                    bool(greedy[index, first:last].all()),
                )


class _Row:
    """Represents a context and some continuations of it, laid out one behind the other."""

    def __init__(self, context: tuple[int, ...]):
        self.context = context
        self.continuations: list[tuple[int, Ids]] = []
        self.length, self.scored = len(context), 0

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, Ids, Ids]], max_length: int) -> list[_Row]:
        """Returns rows that hold all (index, context, continuation), as many of one context in a row as the length allows."""
        rows: list[_Row] = []
        last: dict[tuple[int, ...], _Row] = {}
        for index, context, continuation in pairs:
            row = last.get(tuple(context))
            if row is None or row.length + len(continuation) - 1 > max_length:
                row = last[tuple(context)] = cls(tuple(context))
                rows.append(row)
            row.continuations.append((index, continuation))
            row.length += len(continuation) - 1  # the last token is only predicted
            row.scored += len(continuation)
        return rows

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """Lists (index of the pair, first and last scored position) of each continuation."""
        ends = np.cumsum([len(tokens) for _, tokens in self.continuations]).tolist()
        return [(index, end - len(tokens), end) for (index, tokens), end in zip(self.continuations, ends, strict=True)]

    def fill(self, into: dict[str, Int[np.ndarray, "n"]]) -> None:
        """Writes the row's arrays; what is not written is padding."""
        start = len(self.context)
        into["tokens"][:start] = self.context
        into["positions"][:start] = np.arange(start)
        into["horizon"][:start] = self.length  # all continuations see the context
        token, scored = start, 0
        for _, tokens in self.continuations:
            read = len(tokens) - 1
            into["tokens"][token : token + read] = tokens[:-1]
            into["positions"][token : token + read] = start + np.arange(read)
            into["horizon"][token : token + read] = token + read  # a continuation is seen by itself alone
            # The context's last token predicts the first of each continuation.
            into["logit_position"][scored : scored + len(tokens)] = [start - 1, *range(token, token + read)]
            into["target"][scored : scored + len(tokens)] = tokens
            token, scored = token + read, scored + len(tokens)


@partial(jax.jit, static_argnums=(0, 1))  # scorers of one structure of decoder share programs
def _score(
    graphdef: nnx.GraphDef,
    at_once: int,
    params: nnx.State,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    horizon: Int[Array, "B T"],
    logit_position: Int[Array, "B N"],
    target: Int[Array, "B N"],
) -> tuple[Float[Array, "B N"], Bool[Array, "B N"]]:
    """Computes the log-prob of each target (float32), and whether it is the likeliest token."""
    decoder = nnx.merge(graphdef, params)
    hidden = decoder(tokens, positions, horizon)
    hidden = jnp.take_along_axis(hidden, logit_position[..., None], axis=1)
    head = decoder.unembedding().astype(hidden.dtype)
    softcap = decoder.config.final_softcap
    size = min(at_once, target.size)
    padding = -target.size % size

    def part(inputs):
        states, ids = inputs
        logits = lax.dot_general(
            states,
            head,
            (((1,), (1,)), ((), ())),
            precision=precision(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
        picked = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
        return picked - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == ids

    states = jnp.pad(hidden.reshape(-1, hidden.shape[-1]), ((0, padding), (0, 0))).reshape(-1, size, hidden.shape[-1])
    logps, greedy = lax.map(part, (states, jnp.pad(target.reshape(-1), (0, padding)).reshape(-1, size)))
    return tuple(values.reshape(-1)[: target.size].reshape(target.shape) for values in (logps, greedy))


def _size(count: int, least: int) -> int:
    """Returns the power of two, at least `least`, that holds so many."""
    return max(least, 1 << max(count - 1, 0).bit_length())


def _length(count: int) -> int:
    """Returns a power of two, or one and a half, that holds so many: at most a third is padding."""
    size = _size(count, SHORTEST)
    return size * 3 // 4 if count <= size * 3 // 4 and size > SHORTEST else size
