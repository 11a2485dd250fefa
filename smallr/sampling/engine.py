"""The engine: requests in, completions out, many at a time."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from smallr.core.errors import UserError
from smallr.core.sharding import RULES, named_sharding
from smallr.models.cached_attention import TILE
from smallr.models.decoder import Decoder
from smallr.models.soft import soft_tokens
from smallr.sampling.completions import Completion, Handle, OnDelta
from smallr.sampling.forward import Forward, empty_cache
from smallr.sampling.programs import Hook, Programs, Prompts, Written
from smallr.sampling.prompts import end_of_turn, prompt_ids, sample_key, stop_ids
from smallr.sampling.requests import Request, Result
from smallr.sampling.table import SlotTable
from smallr.sampling.weights import Packer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_LENGTH = 4096  # of prompt and completion, where the model's context is longer


class Engine:
    """Samples from one decoder.

    A prompt is read in pieces of fixed length into a slot of the cache; then all slots write a token a step, several steps
    in one program. A completion that ends frees its slot to the next. The cache grows and shrinks with the longest
    sequence in it, in a few sizes, each with its own compiled programs.

    Args:
      decoder: with adapters or a quantised base or without; its arrays may be changed afterwards (`update`).
      tokenizer: its own.
      mesh: that the decoder is on.
      slots: completions written at once. A request's draws depend on itself alone. Its logits do so up to the last bits
        of float32, in which sizes of the cache and the number of the slot have their part (`docs/sampling.md`).
      max_length: tokens of a prompt and its completion together; None is the model's context, at most DEFAULT_LENGTH.
      end_ids: tokens that end a completion besides the tokenizer's EOS and the chat template's end of turn.
      piece: tokens of a prompt read at once; None chooses by the backend.
      steps: tokens a slot writes before the host looks at them.
      hook: changes logits before a token is drawn.
      hook_shared: arrays for the hook.
      hook_slot: arrays of one request for the hook, where the request brings none; they have the same shapes.

    Raises:
      UserError: a max_length beyond the model's context.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        mesh: Mesh,
        *,
        slots: int = 32,
        max_length: int | None = None,
        end_ids: Sequence[int] = (),
        piece: int | None = None,
        steps: int = 8,
        hook: Hook | None = None,
        hook_shared: Any = (),
        hook_slot: Any = (),
    ):
        config = decoder.config
        self.max_length = min(config.max_positions, DEFAULT_LENGTH) if max_length is None else max_length
        if not 1 < self.max_length <= config.max_positions:
            raise UserError(f"max_length {self.max_length} is not between 2 and the model's {config.max_positions}")
        self.tokenizer, self.mesh, self.config = tokenizer, mesh, config
        self._soft = soft_tokens(decoder)
        eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.end_ids = tuple(dict.fromkeys((*eos, *end_of_turn(tokenizer), *end_ids)))
        self._piece = piece or (64 if jax.default_backend() == "cpu" else 256)
        self._rows = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
        self._steps = steps
        self._packer = Packer(decoder, mesh)
        self._programs = Programs(Forward(config, self._packer.block, self._packer.trunk), mesh, steps, hook)
        self._table = SlotTable(slots, self._piece)
        self._waiting: collections.deque[Completion] = collections.deque()
        self._hook_shared, self._hook_slot = hook_shared, hook_slot
        self._hook_slots = jax.tree.map(lambda x: np.stack([x] * slots), hook_slot)
        with jax.set_mesh(mesh):
            self._weights = self._packer(decoder)
            self._cache = empty_cache(config, slots, _capacity(1), mesh)
            shape = (slots, config.d_model)
            self._hidden = jnp.zeros(shape, config.dtype, device=named_sharding(mesh, ("batch", None), shape))

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
            self._weights = self._packer(decoder)
        if hook_shared is not None:
            self._hook_shared = hook_shared
        self._table.forget()

    @property
    def bytes_of_a_step(self) -> int:
        """Bytes that are read to write a token in every slot: all weights, and the cache in its present size.

        Not counted are the embedding's rows of the tokens, and activations.
        """
        read = jax.tree.leaves((self._weights.layers, self._weights.head, self._cache))
        return sum(leaf.nbytes for leaf in read)

    @property
    def busy(self) -> bool:
        """Whether requests wait or are being written."""
        return bool(self._waiting or self._table.busy)

    def generate(self, requests: Sequence[Request], progress: bool = True) -> list[Result]:
        """The results in the order of the requests; a request that cannot be served has its `error` there.

        Args:
          requests: any number.
          progress: a bar of finished completions with tokens/s, if the output is a terminal.
        """
        handles = [self.submit(request) for request in requests]
        total = sum(handle.request.params.n for handle in handles if handle.result is None)
        start, written = time.perf_counter(), 0
        with tqdm(total=total, desc="sampling", unit="completion", disable=None if progress else True) as bar:
            while not all(handle.result for handle in handles):
                done = self.step()
                written += sum(len(completion.tokens) for completion in done)
                bar.set_postfix_str(f"{written / (time.perf_counter() - start):.0f} tokens/s", refresh=False)
                bar.update(len(done))
        return [handle.result for handle in handles]

    def submit(self, request: Request, on_delta: OnDelta | None = None, hook_slot: Any = None) -> Handle:
        """Queues a request; `step` serves it.

        Args:
          request: what is asked.
          on_delta: called in `step` for each completion that has grown.
          hook_slot: the hook's arrays for this request.

        Returns:
          A handle, whose `result` is there at once if the request cannot be served.
        """
        handle = Handle(request, (), on_delta, self._hook_slot if hook_slot is None else hook_slot)
        try:
            ids = prompt_ids(request, self.tokenizer, self.config.vocab_size, self._soft)
        except UserError as error:
            handle.result = Result(error=str(error))
            return handle
        if len(ids) >= self.max_length:
            handle.result = Result(
                error=f"the prompt has {len(ids)} tokens, which with one of a completion is over the {self.max_length} of "
                f"max_length (the model's context: {self.config.max_positions})"
            )
            return handle
        handle.prompt = np.asarray(ids, np.int32)
        params = request.params
        ends = stop_ids(request, self.tokenizer, self.end_ids)
        limit = min(params.max_tokens, self.max_length - len(ids))
        for number in range(params.n):
            key = sample_key(ids, params.seed, number)
            self._waiting.append(Completion(handle, number, self.tokenizer, ends, limit, key))
        return handle

    def cancel(self, handle: Handle) -> None:
        """Drops a request; its slots are free at once, and it gets an error as its result."""
        self._waiting = collections.deque(each for each in self._waiting if each.handle is not handle)
        for slot in self._table.busy:
            if self._table.completions[slot].handle is handle:
                self._table.leave(slot)
        if handle.result is None:
            handle.result = Result(error="cancelled")

    def step(self) -> list[Completion]:
        """Reads waiting prompts into free slots, writes up to `steps` tokens in every slot, and says what was finished."""
        with jax.set_mesh(self.mesh):
            while self._waiting and self._table.free:
                self._admit()
            if not self._table.busy:
                return []
            return self._take(self._write())

    def _admit(self) -> None:
        """Reads as many prompts as are read side by side."""
        seated: list[tuple[int, int, np.ndarray]] = []  # slot, tokens already there, prompt
        forks: list[tuple[int, int]] = []  # from slot, to slot
        while self._waiting and self._table.free and len(seated) < self._rows:
            completion = self._waiting.popleft()
            prompt = completion.handle.prompt
            self._fit(len(prompt))
            slot, source, shared = self._table.place(prompt)
            if shared and source != slot:
                self._fork(source, slot)
            self._seat(slot, completion)
            seated.append((slot, shared, prompt))
            while self._waiting and self._table.free and self._waiting[0].handle is completion.handle:
                sibling = self._table.free[0]  # of the same prompt
                self._seat(sibling, self._waiting.popleft())
                forks.append((slot, sibling))
        self._read(seated)
        for source, target in forks:
            self._fork(source, target)
        # Where the rotation depends on the length of the whole prompt, equal beginnings are not equal in the cache.
        if self.config.rope_scaling is None or self.config.rope_scaling.kind != "longrope":
            for slot in (*(slot for slot, _, _ in seated), *(target for _, target in forks)):
                self._table.hold(slot)

    def _seat(self, slot: int, completion: Completion) -> None:
        self._table.seat(slot, completion)
        for all, one in zip(
            jax.tree.leaves(self._hook_slots), jax.tree.leaves(completion.handle.hook_slot), strict=True
        ):
            all[slot] = one

    def _read(self, seated: list[tuple[int, int, np.ndarray]]) -> None:
        """Piece by piece; the pieces of a prompt are the same whatever is read beside it."""
        size, rows = self._piece, self._rows
        starts = {slot: start for slot, start, _ in seated}
        while any(starts[slot] < len(prompt) for slot, _, prompt in seated):
            prompts = Prompts(
                np.full(rows, len(self._table), np.int32),
                np.zeros((rows, size), np.int32),
                *(np.zeros(rows, np.int32) for _ in range(3)),
            )
            for row, (slot, _, prompt) in enumerate(seated):
                start = starts[slot]
                piece = prompt[start : start + size]
                if len(piece):
                    prompts.slot[row], prompts.start[row], prompts.count[row] = slot, start, len(piece)
                    prompts.tokens[row, : len(piece)], prompts.longest[row] = piece, len(prompt) - 1
                starts[slot] += size
            self._cache, self._hidden = self._programs.read(self._weights, self._cache, self._hidden, prompts)

    def _fork(self, source: int, target: int) -> None:
        arguments = np.int32(source), np.int32(target)
        self._cache, self._hidden = self._programs.fork(self._cache, self._hidden, *arguments)

    def _write(self) -> Written:
        slots = self._table.slots
        left = max(int(slots.limit[slot] - slots.written[slot]) for slot in self._table.busy)
        steps = min(self._steps, left)
        self._fit(0, steps, shrink=True)
        self._cache, self._hidden, written = self._programs.write(
            self._weights,
            self._cache,
            self._hidden,
            self._table.arguments(),
            np.int32(steps),
            jax.tree.map(np.copy, self._hook_slots),
            self._hook_shared,
        )
        return jax.device_get(written)

    def _take(self, written: Written) -> list[Completion]:
        """Hands the tokens to the completions; returns those that are finished."""
        done = []
        for slot in self._table.busy:
            completion = self._table.completions[slot]
            count = int(written.alive[:, slot].sum())
            for step in range(count):
                if completion.finish_reason:
                    break  # a stop string, which the devices do not know
                completion.add(
                    int(written.tokens[step, slot]),
                    written.logprobs[step, slot],
                    written.top_tokens[step, slot],
                    written.top_logprobs[step, slot],
                )
            self._table.slots.length[slot] += count
            self._table.slots.written[slot] += count
            if completion.finish_reason:
                self._table.leave(slot)
                done.append(completion)
            completion.tell()
            if completion.finish_reason:
                completion.handle.finish(completion.number, completion.sample())
        return done

    def _fit(self, length: int, steps: int = 0, shrink: bool = False) -> None:
        """Makes the cache long enough for a new prompt and for what is to be written, and not much longer."""
        lengths = [int(self._table.slots.length[slot]) for slot in self._table.busy]
        need = max(length, *(have + steps for have in lengths), 1) if lengths else max(length, 1)
        capacity = _capacity(need)
        now = self._cache[0].capacity
        if capacity > now or (shrink and capacity < now and not self._waiting):
            self._cache = self._programs.resize(self._cache, capacity)
            if capacity < now:
                self._table.forget()


def _capacity(length: int) -> int:
    """The smallest size of the cache for this many tokens: 2, 3, 4, 6, 8, 12, 16 … tiles."""
    tiles = -(-length // TILE)
    size = 2
    while size < tiles:
        size = size + size // 2 if size & (size - 1) == 0 else (size // 3) * 4
    return size * TILE
