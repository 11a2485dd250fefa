"""Runs the engine: requests in, completions out, many at a time."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int
from tqdm import tqdm

from smallr.core.errors import UserError
from smallr.core.sharding import RULES, named_sharding
from smallr.data.encode import longest_text
from smallr.data.templates import DATE, parse_date
from smallr.models.cached_attention import TILE
from smallr.models.chat_template import end_of_turn
from smallr.models.decoder import Decoder
from smallr.models.lora import is_adapter_path
from smallr.models.soft import soft_tokens
from smallr.sampling.completions import Completion, Handle, OnDelta
from smallr.sampling.forward import Forward, empty_cache
from smallr.sampling.programs import Decoded, Hook, PrefillChunk, Programs
from smallr.sampling.prompts import prompt_ids, sample_key, stop_ids
from smallr.sampling.requests import Request, Result
from smallr.sampling.table import SlotTable
from smallr.sampling.weights import Packer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_LENGTH = 4096  # of prompt and completion, where the model's context is longer


class _Assigned(NamedTuple):
    """Represents a completion whose prompt is to be read into a slot, behind the tokens that are there already."""

    slot: int
    completion: Completion
    start: int


class _Fork(NamedTuple):
    """Represents a completion of the same prompt, whose slot becomes a copy of another one."""

    source: int
    slot: int
    completion: Completion


class Engine:
    """Samples from one decoder.

    A prompt is read in chunks of fixed length into a decode slot of the cache; then all slots draw a token a step,
    several steps in one program. A completion that ends frees its slot for the next. The cache grows and shrinks with
    the longest sequence in it, in a few sizes, each with its own compiled programs.

    What goes wrong with one request is that request's error and leaves the others alone. What goes wrong on the devices
    is raised by `step`; after `restart` the requests that had not begun are served.

    Args:
      decoder: with adapters or a quantised base or without; its arrays may be changed afterwards (`update`).
      tokenizer: its own.
      mesh: that the decoder is on.
      decode_slots: completions that grow at once. A request's draws depend on itself alone. Its logits do so up
        to the last bits of float32, in which sizes of the cache and the slot have their part (`docs/sampling.md`).
      max_length: tokens of a prompt and its completion together; None is the model's context, at most DEFAULT_LENGTH.
      end_ids: tokens that end a completion besides the tokenizer's EOS and the chat template's end of turn.
      prefill_chunk: tokens of a prompt that are read at once; None chooses by the backend.
      steps: tokens that a slot draws before the host looks at them.
      hook: changes logits before a token is drawn.
      hook_shared: arrays for the hook.
      hook_slot: arrays of one request for the hook, where the request brings none; they have the same shapes.
      critic: another decoder of the same vocabulary, on the same mesh and in the same dtype, that reads every token too;
        the hook gets its hidden states.

    Raises:
      UserError: a max_length beyond the model's context.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        mesh: Mesh,
        *,
        decode_slots: int = 32,
        max_length: int | None = None,
        end_ids: Sequence[int] = (),
        prefill_chunk: int | None = None,
        steps: int = 8,
        date: str = DATE,
        hook: Hook | None = None,
        hook_shared: Any = (),
        hook_slot: Any = (),
        critic: Decoder | None = None,
    ):
        config = decoder.config
        self._context = min(each.config.max_positions for each in (decoder, critic) if each is not None)
        self.max_length = min(self._context, DEFAULT_LENGTH) if max_length is None else max_length
        if not 1 < self.max_length <= self._context:
            raise UserError(f"max_length {self.max_length} is not between 2 and the model's {self._context}")
        self.tokenizer, self.mesh, self.config = tokenizer, mesh, config
        self._date = parse_date(date)
        self._soft, self._most_characters = soft_tokens(decoder), longest_text(tokenizer, self.max_length)
        eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.end_ids = tuple(dict.fromkeys((*eos, *end_of_turn(tokenizer), *end_ids)))
        self._decode_slots, self._steps = decode_slots, steps
        self._chunk = prefill_chunk or (64 if jax.default_backend() == "cpu" else 256)
        self._rows = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
        self._packer = Packer(decoder, mesh)
        forward, self._critic = None, None
        if critic is not None:
            packer = Packer(critic, mesh)
            forward = Forward(critic.config, packer.block, packer.trunk)
            with jax.set_mesh(mesh):
                self._critic = packer(critic)._replace(head=None)
        self._forward = Forward(config, self._packer.block, self._packer.trunk, forward)
        self._programs = Programs(self._forward, mesh, steps, hook)
        self._waiting: collections.deque[Completion] = collections.deque()
        self._admitting: list[Completion] = []
        self._hook_shared, self._hook_slot = hook_shared, hook_slot
        with jax.set_mesh(mesh):
            self._weights = self._packer(decoder)._replace(critic=self._critic)
        self._empty_slots()

    def _empty_slots(self) -> None:
        """Makes an empty cache and a table of free slots."""
        self._table = SlotTable(self._decode_slots, self._chunk)
        self._hook_slots = jax.tree.map(lambda x: np.stack([x] * self._decode_slots), self._hook_slot)
        shape = (self._decode_slots, sum(config.d_model for config in self._forward.configs))
        self._cache = self._hidden = None  # not the old and the new at once
        with jax.set_mesh(self.mesh):
            self._cache = empty_cache(self._forward.configs, self._decode_slots, _capacity(1), self.mesh)
            sharding = named_sharding(self.mesh, ("batch", None), shape)
            self._hidden = jnp.zeros(shape, self.config.dtype, device=sharding)

    def update(self, decoder: Decoder, hook_shared: Any = None) -> None:
        """Takes other weights of the same structure; nothing is compiled again.

        Raises:
          RuntimeError: requests are under way.
          ValueError: another structure.
        """
        if self.busy:
            raise RuntimeError("the weights cannot change while requests are under way")
        with jax.set_mesh(self.mesh):
            self._weights = None  # not the old and the new at once
            self._weights = self._packer(decoder)._replace(critic=self._critic)
        if hook_shared is not None:
            self._hook_shared = hook_shared
        self._table.forget()

    def update_adapters(self, decoder: Decoder) -> None:
        """Takes other adapters beside the same base, which is neither read nor packed again.

        Raises:
          RuntimeError: requests are under way.
          ValueError: another structure.
        """
        if self.busy:
            raise RuntimeError("the adapters cannot change while requests are under way")
        with jax.set_mesh(self.mesh):
            self._weights = self._packer.with_adapters(self._weights, decoder)
        self.forget()

    def forget(self) -> None:
        """Forgets the prompts whose beginnings later ones might share: what follows does not depend on what was before."""
        self._table.forget()

    @property
    def weight_bytes(self) -> tuple[int, int]:
        """Returns the bytes of all weights but adapters, and of the adapters."""
        flat = [(path, leaf) for state in self._weights.layers for path, leaf in nnx.to_flat_state(state)]
        adapters = sum(x.nbytes for path, leaf in flat if is_adapter_path(path) for x in jax.tree.leaves(leaf))
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._weights)) - adapters, adapters

    @property
    def bytes_of_a_step(self) -> int:
        """Returns bytes that are read to draw a token for every slot: weights, the hook's too, and the cache as it is now.

        Not counted are the embedding's rows of the tokens, and activations.
        """
        critic = self._critic.layers if self._critic else ()
        read = jax.tree.leaves((self._weights.layers, self._weights.head, critic, self._hook_shared, self._cache))
        return sum(leaf.nbytes for leaf in read)

    @property
    def busy(self) -> bool:
        """Returns whether requests wait or are being decoded."""
        return bool(self._waiting or self._table.busy)

    def generate(self, requests: Sequence[Request], progress: bool = True) -> list[Result]:
        """Returns the results in the order of the requests; one that cannot be served has its `error` there.

        Args:
          requests: any number.
          progress: a bar of finished completions with tokens/s, if the output is a terminal.
        """
        handles = [self.submit(request) for request in requests]
        total = sum(handle.request.params.n for handle in handles if handle.result is None)
        start, count = time.perf_counter(), 0
        with tqdm(total=total, desc="sampling", unit="completion", disable=None if progress else True) as bar:
            while not all(handle.result for handle in handles):
                done = self.step()
                count += sum(len(completion.tokens) for completion in done)
                bar.set_postfix_str(f"{count / (time.perf_counter() - start):.0f} tokens/s", refresh=False)
                bar.update(len(done))
        return [handle.result for handle in handles]

    def encode(self, request: Request) -> Int[np.ndarray, "tokens"]:
        """Checks a request and encodes its prompt. Any thread may call this while another one runs the engine.

        Raises:
          UserError: the request cannot be served; names the field.
        """
        vocab_size, length = self.config.vocab_size, self.max_length
        stop_ids(request, self.tokenizer, self.end_ids, vocab_size)
        ids = prompt_ids(
            request, self.tokenizer, vocab_size, soft=self._soft, most=self._most_characters, date=self._date
        )
        if len(ids) >= length:
            raise UserError(
                f"the prompt has {len(ids)} tokens, which with one of a completion is over the {length} of "
                f"max_length (the model's context: {self._context})"
            )
        return np.asarray(ids, np.int32)

    def submit(
        self,
        request: Request,
        on_delta: OnDelta | None = None,
        hook_slot: Any = None,
        prompt: Int[np.ndarray, "tokens"] | None = None,
    ) -> Handle:
        """Queues a request; `step` serves it.

        Args:
          request: messages or a prompt, and how to sample.
          on_delta: called in `step` for each completion that has grown.
          hook_slot: the hook's arrays for this request.
          prompt: of the request, as `encode` returned it; None to encode it now.

        Returns:
          A handle, whose `result` is there at once if the request cannot be served.
        """
        handle = Handle(request, on_delta, self._hook_slot if hook_slot is None else hook_slot)
        params = request.params
        try:
            handle.prompt = prompt = self.encode(request) if prompt is None else prompt
            ends = stop_ids(request, self.tokenizer, self.end_ids, self.config.vocab_size)
            limit = min(params.max_tokens, self.max_length - len(prompt))
            keys = [sample_key(prompt, params.seed, params.round, number) for number in range(params.n)]
            new = [Completion(handle, i, self.tokenizer, ends, limit, key) for i, key in enumerate(keys)]
        except Exception as error:  # whatever it is, it is of this request
            handle.fail(error)
            return handle
        self._waiting.extend(new)
        return handle

    def cancel(self, handle: Handle) -> None:
        """Drops a request; its slots are free at once, and it gets an error as its result."""
        self._drop(handle, UserError("cancelled"))

    def restart(self, error: Exception) -> None:
        """Starts over with an empty cache after `step` has raised: requests that had begun fail, the others wait on."""
        begun = [self._table.completions[slot] for slot in self._table.busy] + self._admitting
        for completion in begun:
            self._drop(completion.handle, error)
        self._admitting = []
        self._empty_slots()

    def step(self) -> list[Completion]:
        """Reads waiting prompts into free slots and draws up to `steps` tokens for every slot.

        Returns:
          The completions that are finished now.
        """
        with jax.set_mesh(self.mesh):
            while self._waiting and self._table.free:
                self._admit()
            if not self._table.busy:
                return []
            return self._take(self._decode())

    def _drop(self, handle: Handle, error: Exception) -> None:
        """Ends a request with an error and frees its slots."""
        handle.fail(error)
        self._waiting = collections.deque(each for each in self._waiting if each.handle is not handle)
        for slot in self._table.busy:
            if self._table.completions[slot].handle is handle:
                self._table.release(slot)

    def _admit(self) -> None:
        """Assigns slots to as many prompts as are read side by side, and reads them."""
        assigned: list[_Assigned] = []
        forks: list[_Fork] = []
        while self._waiting and self._table.free and len(assigned) < self._rows:
            completion = self._pop()
            self._fit(len(completion.handle.prompt))
            slot, source, shared = self._table.choose(completion.handle.prompt)
            if not self._assign(slot, completion):
                continue
            if shared and source != slot:
                self._fork(source, slot)
            assigned.append(_Assigned(slot, completion, shared))
            while self._waiting and self._table.free and self._waiting[0].handle is completion.handle:
                sibling, other = self._pop(), self._table.free[0]  # of the same prompt
                if self._assign(other, sibling):
                    forks.append(_Fork(slot, other, sibling))
        # A request that failed at its last sample has lost the slots of the first ones.
        assigned = [each for each in assigned if self._table.completions[each.slot] is each.completion]
        forks = [each for each in forks if self._table.completions[each.slot] is each.completion]
        self._prefill(assigned)
        for fork in forks:
            self._fork(fork.source, fork.slot)
        # Where the rotation depends on the length of the whole prompt, equal beginnings are not equal in the cache.
        if all(each.rope_scaling is None or each.rope_scaling.kind != "longrope" for each in self._forward.configs):
            for each in (*assigned, *forks):
                self._table.retain(each.slot, each.completion.handle.prompt)
        self._admitting = []

    def _pop(self) -> Completion:
        """Takes the next waiting completion, so that `restart` knows of it until it has been read."""
        self._admitting.append(self._waiting.popleft())
        return self._admitting[-1]

    def _assign(self, slot: int, completion: Completion) -> bool:
        """Gives a slot to a completion; False if that fails, which ends its request."""
        own, all_slots = jax.tree.leaves(completion.handle.hook_slot), jax.tree.leaves(self._hook_slots)
        try:
            for rows, row in zip(all_slots, own, strict=True):
                rows[slot] = row
            self._table.assign(slot, completion)
        except Exception as error:
            self._drop(completion.handle, error)
            return False
        return True

    def _prefill(self, assigned: list[_Assigned]) -> None:
        """Reads prompts chunk by chunk; the chunks of a prompt are the same whatever is read beside it."""
        size, rows = self._chunk, self._rows
        starts = [each.start for each in assigned]
        prompts = [each.completion.handle.prompt for each in assigned]
        while any(start < len(prompt) for start, prompt in zip(starts, prompts, strict=True)):
            chunk = PrefillChunk(
                np.full(rows, len(self._table), np.int32),
                np.zeros((rows, size), np.int32),
                *(np.zeros(rows, np.int32) for _ in range(3)),
            )
            for row, (each, start, prompt) in enumerate(zip(assigned, starts, prompts, strict=True)):
                tokens = prompt[start : start + size]
                if len(tokens):
                    chunk.slot[row], chunk.start[row], chunk.count[row] = each.slot, start, len(tokens)
                    chunk.tokens[row, : len(tokens)], chunk.longest[row] = tokens, len(prompt) - 1
            starts = [start + size for start in starts]
            self._cache, self._hidden = self._programs.prefill(self._weights, self._cache, self._hidden, chunk)

    def _fork(self, source: int, target: int) -> None:
        arguments = np.int32(source), np.int32(target)
        self._cache, self._hidden = self._programs.fork(self._cache, self._hidden, *arguments)

    def _decode(self) -> Decoded:
        slots = self._table.slots
        left = max(int(slots.limit[slot] - slots.generated[slot]) for slot in self._table.busy)
        steps = min(self._steps, left)
        self._fit(0, steps, shrink=True)
        self._cache, self._hidden, decoded = self._programs.decode(
            self._weights,
            self._cache,
            self._hidden,
            self._table.arguments(),
            np.int32(steps),
            jax.tree.map(np.copy, self._hook_slots),
            self._hook_shared,
        )
        return jax.device_get(decoded)

    def _take(self, decoded: Decoded) -> list[Completion]:
        """Hands the tokens to the completions; returns those that are finished."""
        done = []
        for slot, completion in enumerate(self._table.completions[:]):
            if completion is None or completion.handle.result is not None:
                continue  # free, or its request failed at another of its samples
            try:
                self._advance(slot, completion, decoded)
            except Exception as error:  # of the callback, of the tokenizer: one request's
                self._drop(completion.handle, error)
                continue
            if completion.finish_reason:
                done.append(completion)
        return done

    def _advance(self, slot: int, completion: Completion, decoded: Decoded) -> None:
        """Hands a slot's tokens to its completion, and frees the slot if that is finished."""
        count = int(decoded.alive[:, slot].sum())
        for step in range(count):
            if completion.finish_reason:
                break  # a stop string, which the devices do not know
            completion.add(
                int(decoded.tokens[step, slot]),
                decoded.logprobs[step, slot],
                decoded.top_tokens[step, slot],
                decoded.top_logprobs[step, slot],
            )
        self._table.slots.length[slot] += count
        self._table.slots.generated[slot] += count
        if completion.finish_reason:
            self._table.release(slot)
        completion.report()
        if completion.finish_reason:
            completion.handle.finish(completion.number, completion.sample())

    def _fit(self, length: int, steps: int = 0, shrink: bool = False) -> None:
        """Makes the cache long enough for a new prompt and for the tokens to come, and not much longer."""
        lengths = [int(self._table.slots.length[slot]) for slot in self._table.busy]
        need = max(length, *(have + steps for have in lengths), 1) if lengths else max(length, 1)
        capacity = _capacity(need)
        now = self._cache[0].capacity
        if capacity > now or (shrink and capacity < now and not self._waiting):
            self._cache = self._programs.resize(self._cache, capacity)
            if capacity < now:
                self._table.forget()


def _capacity(length: int) -> int:
    """Returns the smallest size of the cache for this many tokens: 2, 3, 4, 6, 8, 12, 16 … tiles."""
    tiles = -(-length // TILE)
    size = 2
    while size < tiles:
        size = size + size // 2 if size & (size - 1) == 0 else (size // 3) * 4
    return size * TILE
