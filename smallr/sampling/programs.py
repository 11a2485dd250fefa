"""Compiles the programs that run on the devices: prefill, decoding, and the upkeep of the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from smallr.models.cached_attention import LayerCache
from smallr.sampling.adjusting import Adjustments, TokenState, adjust, count
from smallr.sampling.choice import Rules, choose
from smallr.sampling.forward import KEY_AXES, NOWHERE, VALUE_AXES, Cache, Forward, state_sharding
from smallr.sampling.requests import MAX_LOGPROBS
from smallr.sampling.weights import Weights

TOP = MAX_LOGPROBS


class HookInputs(NamedTuple):
    """Holds arguments of a logits hook in one step.

    Attributes:
      logits: of the model, after its soft-cap, at temperature 1.
      hidden: what the head made them of, in the compute dtype.
      critic: hidden states of the engine's critic after the same tokens; None if it has none.
      index: of the token to be drawn in its completion.
      slots: the hook's arrays of each request, one row a decode slot.
      shared: the hook's arrays for all, e.g. parameters of a value head.
    """

    logits: Float[Array, "S V"]
    hidden: Float[Array, "S D"]
    critic: Float[Array, "S C"] | None
    index: Int[Array, "S"]
    slots: Any
    shared: Any


Hook = Callable[[HookInputs], Float[Array, "S V"]]  # pure; the logits that are drawn from


class DecodeSlots(NamedTuple):
    """Holds the state of the decode slots as a decoding program gets it."""

    alive: Bool[Array, "S"]
    length: Int[Array, "S"]  # tokens in the cache
    generated: Int[Array, "S"]  # tokens of the completion
    limit: Int[Array, "S"]  # of the completion
    longest: Int[Array, "S"]  # largest position of the prompt
    stop: Int[Array, "S E"]  # tokens that end it; -1 is none
    logprobs: Int[Array, "S"]  # -1: none; 0: of the chosen tokens; k: of the k likeliest too
    rules: Rules


class Decoded(NamedTuple):
    """Holds the tokens that a decoding program drew. Where a slot was not alive, the numbers mean nothing."""

    tokens: Int[Array, "steps S"]
    alive: Bool[Array, "steps S"]
    logprobs: Float[Array, "steps S"]
    top_tokens: Int[Array, "steps S TOP"]
    top_logprobs: Float[Array, "steps S TOP"]


class PromptLogprobs(NamedTuple):
    """Holds log-probs of the tokens that come behind those of a chunk, and the likeliest tokens with theirs."""

    chosen: Float[Array, "R P"]
    top_tokens: Int[Array, "R P TOP"]
    top_logprobs: Float[Array, "R P TOP"]


class PrefillChunk(NamedTuple):
    """Represents chunks of some prompts; several may be of one prompt."""

    slot: Int[Array, "R"]  # decode slot of each; the number of slots for no prompt
    tokens: Int[Array, "R P"]
    start: Int[Array, "R"]  # position of the first token
    count: Int[Array, "R"]  # how many are tokens
    longest: Int[Array, "R"]
    is_last: Bool[Array, "R"]  # of its prompt


class Programs:
    """Compiles the functions of one structure of decoder, mesh and hook. Cache and hidden states are donated.

    On one CPU prefill and decoding are a few programs each, of which that of some layers is called until all have been run:
    it compiles in a fraction of the time that one program of all layers takes, and a call costs little beside their work.
    """

    def __init__(self, forward: Forward, mesh: Mesh, steps: int, hook: Hook | None):
        whole = NamedSharding(mesh, PartitionSpec())
        self.mesh = mesh
        draw = jax.jit(functools.partial(_draw, forward, hook), donate_argnums=7)
        self.by_layer = jax.default_backend() == "cpu" and mesh.size == 1
        if self.by_layer:
            self.prefill = functools.partial(_prefill, forward)
            self.decode = functools.partial(_decode_by_layer, forward, draw, whole)
        else:
            self.prefill = jax.jit(functools.partial(_prefill, forward), donate_argnums=(1, 2))
            self.decode = jax.jit(
                functools.partial(_decode, forward, draw, steps),
                donate_argnums=(1, 2, 7),
                out_shardings=(None, None, whole, None),
            )
        self.score = jax.jit(
            functools.partial(_score, forward), donate_argnums=(1, 2), out_shardings=(None, None, whole)
        )
        self.verify = jax.jit(
            functools.partial(_verify, forward), donate_argnums=(1, 2), out_shardings=(None, None, whole, whole)
        )
        self.fork = jax.jit(_fork, donate_argnums=(0, 1))
        self._resize = jax.jit(self._resized, static_argnums=1)

    def resize(self, cache: Cache, capacity: int) -> Cache:
        """Returns the cache with room for more, or fewer, tokens; layer by layer, so that there are never two whole ones."""
        layers = list(cache)
        del cache
        for layer in range(len(layers)):
            layers[layer] = self._resize(layers[layer], capacity)
        return tuple(layers)

    def _resized(self, cache: LayerCache, capacity: int) -> LayerCache:
        more = capacity - cache.capacity
        keys = jax.lax.pad(cache.keys, jnp.zeros((), cache.keys.dtype), ((0, 0, 0),) * 3 + ((0, more, 0),))
        values = jax.lax.pad(
            cache.values, jnp.zeros((), cache.values.dtype), ((0, 0, 0),) * 2 + ((0, more, 0), (0, 0, 0))
        )

        def sharded(x: Array, axes: tuple[str | None, ...]) -> Array:
            return jax.lax.with_sharding_constraint(x, state_sharding(self.mesh, axes, x.shape))

        return LayerCache(sharded(keys, KEY_AXES), sharded(values, VALUE_AXES))


# Engines of one structure share programs, whatever their weights are.
shared_programs = functools.lru_cache(maxsize=8)(Programs)


def _prefill(
    forward: Forward, weights: Weights, cache: Cache, hidden: Float[Array, "S D"], chunk: PrefillChunk
) -> tuple[Cache, Float[Array, "S D"]]:
    """Returns the cache with the chunks' tokens, and hidden states at the ends of the prompts that end in them."""
    _, cache, hidden = _extended(forward, weights, cache, hidden, chunk)
    return cache, hidden


def _score(
    forward: Forward,
    weights: Weights,
    cache: Cache,
    hidden: Float[Array, "S D"],
    chunk: PrefillChunk,
    following: Int[Array, "R P"],
) -> tuple[Cache, Float[Array, "S D"], PromptLogprobs]:
    """Does what `_prefill` does, and returns log-probs of the tokens that follow each of the chunk's."""
    states, cache, hidden = _extended(forward, weights, cache, hidden, chunk)

    def of_row(row):
        states, tokens = row
        hidden, _ = forward.states(states)
        return PromptLogprobs(*_logprobs(forward.logits(weights.head, hidden), tokens, jnp.full(len(tokens), TOP)))

    return cache, hidden, jax.lax.map(of_row, (states, following))


def _extended(
    forward: Forward, weights: Weights, cache: Cache, hidden: Float[Array, "S D"], chunk: PrefillChunk
) -> tuple[Float[Array, "R P D"], Cache, Float[Array, "S D"]]:
    """Returns the chunk's hidden states, and what `_prefill` returns."""
    positions, index, longest, slot = _places(chunk)
    states, cache = forward.extend(weights, cache, chunk.tokens, positions, index, longest, slot)
    return states, cache, _with_last(hidden, states, chunk)


@jax.jit
def _places(chunk: PrefillChunk) -> tuple[Int[Array, "R P"], Int[Array, "R P"], Int[Array, "R 1"], Int[Array, "R"]]:
    """Returns positions and indices in the cache of a chunk's tokens, the largest position of each prompt, and the slots."""
    offset = jnp.arange(chunk.tokens.shape[1])
    is_token = offset < chunk.count[:, None]
    index = chunk.start[:, None] + offset
    # What is no token repeats the last position, so that none is beyond a table of learned positions.
    positions = jnp.minimum(index, (chunk.start + chunk.count - 1)[:, None])
    return positions, jnp.where(is_token, index, NOWHERE), chunk.longest[:, None], chunk.slot


@functools.partial(jax.jit, donate_argnums=0)
def _with_last(hidden: Float[Array, "S D"], states: Float[Array, "R P D"], chunk: PrefillChunk) -> Float[Array, "S D"]:
    """Returns the hidden states of the slots with those of the chunk's last tokens."""
    last = jnp.take_along_axis(states, jnp.maximum(chunk.count - 1, 0)[:, None, None], axis=1)[:, 0]
    return hidden.at[jnp.where(chunk.is_last, chunk.slot, len(hidden))].set(last, mode="drop")


class _Drawn(NamedTuple):
    """Holds what a step has drawn: the tokens, who goes on, what is counted, and the arguments of `Forward.extend`."""

    decoded: Decoded  # without the axis of steps
    alive: Bool[Array, "S"]
    state: TokenState | None
    new: tuple[Int[Array, "..."], ...]


def _draw(
    forward: Forward,
    hook: Hook | None,
    head: Float[Array, "V D"],
    hidden: Float[Array, "S D"],
    slots: DecodeSlots,
    alive: Bool[Array, "S"],
    step: Int[Array, ""],
    hook_slots: Any,
    hook_shared: Any,
    state: TokenState | None,
    adjustments: Adjustments | None,
) -> _Drawn:
    """Draws a token for every slot; those of slots that are not alive mean nothing."""
    index, length = slots.generated + step, slots.length + step
    hidden, critic = forward.states(hidden)
    logits = forward.logits(head, hidden)
    drawn_from = logits
    if hook is not None:
        drawn_from = hook(HookInputs(logits, hidden, critic, index, hook_slots, hook_shared))
    if adjustments is not None:
        drawn_from = adjust(drawn_from, state, adjustments)
    tokens = choose(drawn_from, slots.rules, index)
    if adjustments is not None:
        state = count(state, tokens, alive)
    decoded = Decoded(tokens, alive, *_logprobs(logits, tokens, jnp.where(alive, slots.logprobs, -1)))
    index_in_cache = jnp.where(alive, length, NOWHERE)[:, None]
    position = jnp.where(alive, length, 0)[:, None]
    alive = alive & ~(tokens[:, None] == slots.stop).any(-1) & (index + 1 < slots.limit)
    if adjustments is not None:  # a slot that has drawn its share goes on in the next program from where it is
        alive &= step + 1 < adjustments.budget
    return _Drawn(decoded, alive, state, (tokens[:, None], position, index_in_cache, slots.longest[:, None]))


@jax.jit
def _after(
    states: Float[Array, "S 1 D"],
    hidden: Float[Array, "S D"],
    alive: Bool[Array, "S"],
    adjustments: Adjustments | None,
) -> Float[Array, "S D"]:
    """Returns the hidden states after a step, from those of the tokens that were drawn in it and those before."""
    return states[:, 0] if adjustments is None else jnp.where(alive[:, None], states[:, 0], hidden)


class _Loop(NamedTuple):
    step: Int[Array, ""]
    cache: Cache
    hidden: Float[Array, "S D"]
    alive: Bool[Array, "S"]
    decoded: Decoded
    state: TokenState | None


def _decode(
    forward: Forward,
    draw: Callable[..., _Drawn],
    capacity: int,
    weights: Weights,
    cache: Cache,
    hidden: Float[Array, "S D"],
    slots: DecodeSlots,
    steps: Int[Array, ""],
    hook_slots: Any,
    hook_shared: Any,
    state: TokenState | None,
    adjustments: Adjustments | None,
) -> tuple[Cache, Float[Array, "S D"], Decoded, TokenState | None]:
    """Draws up to `steps` tokens (at most `capacity`) for every slot that is alive, in one program."""
    rows = len(slots.alive)

    def body(loop: _Loop) -> _Loop:
        given = slots, loop.alive, loop.step, hook_slots, hook_shared, loop.state, adjustments
        drawn = draw(weights.head, loop.hidden, *given)
        decoded = jax.tree.map(lambda all, x: all.at[loop.step].set(x), loop.decoded, drawn.decoded)
        states, cache = forward.extend(weights, loop.cache, *drawn.new, None)
        hidden = _after(states, loop.hidden, loop.alive, adjustments)
        return _Loop(loop.step + 1, cache, hidden, drawn.alive, decoded, drawn.state)

    nothing = Decoded(
        jnp.zeros((capacity, rows), jnp.int32),
        jnp.zeros((capacity, rows), bool),
        jnp.zeros((capacity, rows)),
        jnp.zeros((capacity, rows, TOP), jnp.int32),
        jnp.zeros((capacity, rows, TOP)),
    )
    loop = jax.lax.while_loop(
        lambda loop: (loop.step < steps) & loop.alive.any(),
        body,
        _Loop(jnp.int32(0), cache, hidden, slots.alive, nothing, state),
    )
    return loop.cache, loop.hidden, loop.decoded, loop.state


def _decode_by_layer(
    forward: Forward,
    draw: Callable[..., _Drawn],
    whole: NamedSharding,
    weights: Weights,
    cache: Cache,
    hidden: Float[Array, "S D"],
    slots: DecodeSlots,
    steps: Int[np.ndarray, ""],
    hook_slots: Any,
    hook_shared: Any,
    state: TokenState | None,
    adjustments: Adjustments | None,
) -> tuple[Cache, Float[Array, "S D"], Decoded, TokenState | None]:
    """Does what `_decode` does, by a call for each few layers."""
    slots, hook_slots, adjustments = jax.device_put((slots, hook_slots, adjustments), whole)
    alive, rows = slots.alive, []
    for step in range(int(steps)):
        given = slots, alive, np.int32(step), hook_slots, hook_shared, state, adjustments
        drawn = draw(weights.head, hidden, *given)
        states, cache = forward.extend(weights, cache, *drawn.new, None)
        hidden = _after(states, hidden, alive, adjustments)
        alive, state = drawn.alive, drawn.state
        rows.append(drawn.decoded)
        if not np.asarray(alive).any():  # known while the layers are still at work
            break
    decoded = jax.tree.map(lambda *each: np.stack(each), *jax.device_get(rows))
    return cache, hidden, decoded, state


def _verify(
    forward: Forward,
    weights: Weights,
    cache: Cache,
    hidden: Float[Array, "S D"],
    slots: DecodeSlots,
    proposals: Int[Array, "S N"],
) -> tuple[Cache, Float[Array, "S D"], Decoded, Int[Array, "S"]]:
    """Draws a token for every slot that is alive, and those behind it that were proposed and are the likeliest.

    The first proposal stands in the place of the token that is drawn; -1 is none. A slot that is not greedy must have none.

    Returns:
      Cache, hidden states and tokens, and the likeliest token behind the last of each slot.
    """
    rows, count = proposals.shape
    offset = jnp.arange(count)
    before = forward.logits(weights.head, hidden)
    first = choose(before, slots.rules, slots.generated)
    tokens = proposals.at[:, 0].set(first)
    is_read = slots.alive[:, None] & (tokens >= 0) & (slots.generated[:, None] + offset < slots.limit[:, None])
    # What is not read stands at a position that exists; what is read in vain is overwritten by what comes in its place.
    positions = jnp.where(is_read, slots.length[:, None] + offset, 0)
    states, cache = forward.extend(
        weights,
        cache,
        jnp.where(is_read, tokens, 0),
        positions,
        jnp.where(is_read, positions, NOWHERE),
        slots.longest[:, None],
        None,
    )
    logits = forward.logits(weights.head, states.reshape(rows * count, -1)).reshape(rows, count, -1)
    following = jnp.argmax(logits, -1)
    is_right = is_read[:, 1:] & (tokens[:, 1:] == following[:, :-1]) & (first == proposals[:, 0])[:, None]
    is_end = (tokens[:, :-1, None] == slots.stop[:, None]).any(-1)
    drawn = jnp.cumprod(jnp.concatenate([slots.alive[:, None], is_right & ~is_end], axis=1), axis=1) > 0
    last = jnp.maximum(drawn.sum(1) - 1, 0)[:, None]
    hidden = jnp.where(slots.alive[:, None], jnp.take_along_axis(states, last[..., None], axis=1)[:, 0], hidden)
    wanted = jnp.where(drawn, slots.logprobs[:, None], -1).reshape(-1)
    sources = jnp.concatenate([before[:, None], logits[:, :-1]], axis=1).reshape(rows * count, -1)
    per_token = Decoded(tokens.reshape(-1), drawn.reshape(-1), *_logprobs(sources, tokens.reshape(-1), wanted))
    decoded = jax.tree.map(lambda x: x.reshape(rows, count, *x.shape[1:]).swapaxes(0, 1), per_token)
    return cache, hidden, decoded, jnp.take_along_axis(following, last, axis=1)[:, 0]


def _logprobs(
    logits: Float[Array, "S V"], tokens: Int[Array, "S"], wanted: Int[Array, "S"]
) -> tuple[Float[Array, "S"], Int[Array, "S TOP"], Float[Array, "S TOP"]]:
    """Computes log-probs of the chosen tokens, and the likeliest tokens with theirs; zeros if no slot wants them."""
    rows, top = len(tokens), min(TOP, logits.shape[1])

    def chosen(logits):
        highest = logits.max(-1)
        log_sum = jnp.log(jnp.exp(logits - highest[:, None]).sum(-1))
        picked = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
        return (picked - highest) - log_sum, highest, log_sum

    def likeliest(logits, highest, log_sum):
        values, ids = jax.lax.top_k(logits, top)
        widths = ((0, 0), (0, TOP - top))
        pad = functools.partial(jnp.pad, pad_width=widths)
        # In the same order as above: whoever asks whether the likeliest token was chosen compares the numbers.
        return pad(ids), pad((values - highest[:, None]) - log_sum[:, None], constant_values=-jnp.inf)

    zeros = jnp.zeros(rows)
    logps, highest, log_sum = jax.lax.cond((wanted >= 0).any(), chosen, lambda _: (zeros,) * 3, logits)
    ids, values = jax.lax.cond(
        (wanted > 0).any(),
        likeliest,
        lambda *_: (jnp.zeros((rows, TOP), jnp.int32), jnp.zeros((rows, TOP))),
        *(logits, highest, log_sum),
    )
    return logps, ids, values


def _fork(
    cache: Cache, hidden: Float[Array, "S D"], source: Int[Array, ""], target: Int[Array, ""]
) -> tuple[Cache, Float[Array, "S D"]]:
    """Copies slot `source` over slot `target`."""
    return jax.tree.map(lambda x: x.at[target].set(x[source]), (cache, hidden))
