"""Runs the engine: requests in, completions out, many at a time."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int
from tqdm import tqdm

from smallr.core.errors import UserError
from smallr.core.sharding import RULES
from smallr.data.encode import longest_text
from smallr.data.templates import DATE, parse_date
from smallr.models.chat_template import end_of_turn
from smallr.models.decoder import Decoder
from smallr.models.lora import is_adapter_path
from smallr.models.soft import soft_tokens
from smallr.sampling.adjusting import Adjuster
from smallr.sampling.codec import PromptCodec
from smallr.sampling.completions import Completion, Handle, OnDelta
from smallr.sampling.forward import Forward
from smallr.sampling.grammars import Constraint, GrammarCompiler
from smallr.sampling.lookup import PromptLookup
from smallr.sampling.prefill import Assigned, Prefiller
from smallr.sampling.programs import Decoded, Hook, shared_programs
from smallr.sampling.prompt_logprobs import PromptScorer
from smallr.sampling.prompts import check_adjustments, sample_key, stop_ids
from smallr.sampling.requests import Request, Result
from smallr.sampling.slot_cache import SlotCache
from smallr.sampling.table import SlotTable
from smallr.sampling.weights import Packer, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_LENGTH = 4096  # of prompt and completion, where the model's context is longer


class Encoded(NamedTuple):
    """Holds what `Engine.encode` has made of a request: the tokens of its prompt, and its grammar at the beginning."""

    prompt: Int[np.ndarray, "tokens"]
    constraint: Constraint | None


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
      steps: tokens that a slot draws before the host looks at them; one where a caller watches a completion grow.
      steps_beside_grammars: the same while a slot beside follows a grammar, which itself draws one at a time; None
        chooses by the backend.
      hook: changes logits before a token is drawn.
      hook_shared: arrays for the hook.
      hook_slot: arrays of one request for the hook, where the request brings none; they have the same shapes.
      critic: another decoder of the same vocabulary, on the same mesh and in the same dtype, that reads every token too;
        the hook gets its hidden states.
      lookup: tokens of a greedy completion that are looked up in its text so far and verified in one pass; 0 for none.
        With a hook, and while a request has penalties, a bias or a grammar, tokens are drawn one by one.
      arrays: gives the decoder where `decoder` has shapes in the place of arrays: meanwhile programs are compiled.
      packed: gives in its place what `Packer` makes of a decoder.

    Attributes:
      codec: that turns requests into tokens and back, also for other threads.

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
        steps_beside_grammars: int | None = None,
        date: str = DATE,
        hook: Hook | None = None,
        hook_shared: Any = (),
        hook_slot: Any = (),
        critic: Decoder | None = None,
        lookup: int = 0,
        arrays: Callable[[], Decoder] | None = None,
        packed: Callable[[], Weights] | None = None,
    ):
        config = decoder.config
        self._context = min(each.config.max_positions for each in (decoder, critic) if each is not None)
        self.max_length = min(self._context, DEFAULT_LENGTH) if max_length is None else max_length
        if not 1 < self.max_length <= self._context:
            raise UserError(f"max_length {self.max_length} is not between 2 and the model's {self._context}")
        self.tokenizer, self.mesh, self.config = tokenizer, mesh, config
        most = longest_text(tokenizer, self.max_length)
        self.codec = PromptCodec(
            tokenizer, config.vocab_size, soft=soft_tokens(decoder), most=most, date=parse_date(date)
        )
        eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.end_ids = tuple(dict.fromkeys((*eos, *end_of_turn(tokenizer), *end_ids)))
        self._decode_slots, self._steps = decode_slots, steps
        is_cpu = jax.default_backend() == "cpu"
        self._chunk = prefill_chunk or (64 if is_cpu else 256)
        # A turn of the host takes a millisecond: little beside a step on a CPU, perhaps not on an accelerator (not measured).
        self._steps_beside_grammars = steps_beside_grammars or (1 if is_cpu else max(1, steps // 2))
        self._rows = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
        self._lookup = PromptLookup(lookup) if lookup and hook is None else None
        self._packer = Packer(decoder, mesh)
        forward, self._critic = None, None
        if critic is not None:
            packer = Packer(critic, mesh)
            forward = Forward(critic.config, packer.block, packer.trunk)
            with jax.set_mesh(mesh):
                self._critic = packer(critic)._replace(head=None)
        self._forward = Forward(config, self._packer.block, self._packer.trunk, forward)
        self._programs = shared_programs(self._forward, mesh, steps, hook)
        self._prefill = Prefiller(self._programs, self._chunk, self._rows, decode_slots, tokenizer)
        self._waiting: collections.deque[Completion] = collections.deque()
        self._admitting: list[Completion] = []
        self._hook_shared, self._hook_slot = hook_shared, hook_slot
        self._grammars = GrammarCompiler(tokenizer, config.vocab_size, self.end_ids)
        if arrays is not None or packed is not None:
            self._compile(decoder, packs=packed is None)
        with jax.set_mesh(mesh):
            weights = packed() if packed is not None else self._packer(decoder if arrays is None else arrays())
            self._weights = weights._replace(critic=self._critic)
        self._empty_slots()

    def _compile(self, decoder: Decoder, packs: bool) -> None:
        """Compiles what the first plain request needs, by running it on zeros, where few layers' program serves all."""
        if not self._programs.by_layer or self._critic is not None:
            return
        self._empty_slots()
        with jax.set_mesh(self.mesh):
            (cache, hidden), count = self._slots.state, self._forward.layers_of_a_call
            if packs:
                self._packer.compile(decoder)
            weights = self._packer.read(decoder, None, layers=1)
            weights = weights._replace(layers=weights.layers * count)  # the same zeros in each
            cache, hidden = self._programs.prefill(weights, cache[:count], hidden, self._prefill.nothing())
            rest = np.int32(1), jax.tree.map(np.copy, self._hook_slots), self._hook_shared, None, None
            self._programs.decode(weights, cache, hidden, self._table.arguments(), *rest)

    def _empty_slots(self) -> None:
        """Makes an empty cache and a table of free slots."""
        self._table = SlotTable(self._decode_slots, self._chunk)
        self._adjuster = Adjuster(self._decode_slots, self.config.vocab_size, self._grammars.words, self.mesh)
        self._hook_slots = jax.tree.map(lambda x: np.stack([x] * self._decode_slots), self._hook_slot)
        self._slots = None  # not the old and the new at once
        self._slots = SlotCache(self._forward, self._programs, self._decode_slots, self.mesh)

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
        read = jax.tree.leaves((self._weights.layers, self._weights.head, critic, self._hook_shared, self._slots.cache))
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

    def encode(self, request: Request) -> Encoded:
        """Checks a request, encodes its prompt and compiles its grammar. Any thread may call this.

        Raises:
          UserError: the request cannot be served; names the field.
        """
        params, length = request.params, self.max_length
        stop_ids(request, self.tokenizer, self.end_ids, self.config.vocab_size)
        check_adjustments(params, self.tokenizer, self.end_ids, self.config.vocab_size)
        ids = self.codec.encode(request, is_bounded=True)
        if len(ids) + min(1, params.max_tokens) > length:
            raise UserError(
                f"the prompt has {len(ids)} tokens, which with one of a completion is over the {length} of "
                f"max_length (the model's context: {self._context})"
            )
        constraint = None if params.grammar is None else self._grammars.compile(params.grammar)
        return Encoded(np.asarray(ids, np.int32), constraint)

    def submit(
        self,
        request: Request,
        on_delta: OnDelta | None = None,
        hook_slot: Any = None,
        encoded: Encoded | None = None,
    ) -> Handle:
        """Queues a request; `step` serves it.

        Args:
          request: messages or a prompt, and how to sample.
          on_delta: called in `step` for each completion that has grown.
          hook_slot: the hook's arrays for this request.
          encoded: the request, as `encode` returned it; None to encode it now.

        Returns:
          A handle, whose `result` is there at once if the request cannot be served.
        """
        handle = Handle(request, on_delta, self._hook_slot if hook_slot is None else hook_slot)
        params = request.params
        try:
            encoded = self.encode(request) if encoded is None else encoded
            handle.prompt = prompt = encoded.prompt
            ends = stop_ids(request, self.tokenizer, self.end_ids, self.config.vocab_size)
            limit = min(params.max_tokens, self.max_length - len(prompt))
            new = []
            for number in range(params.n):
                key = sample_key(prompt, params.seed, params.round, number)
                constraint = None if encoded.constraint is None else encoded.constraint.copy()
                new.append(Completion(handle, number, self.tokenizer, ends, limit, key, constraint))
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
        done: list[Completion] = []
        with jax.set_mesh(self.mesh):
            while self._waiting and self._table.free:
                done += self._admit()
            if self._table.busy:
                done += self._take(self._decode())
        return done

    def _drop(self, handle: Handle, error: Exception) -> None:
        """Ends a request with an error and frees its slots."""
        handle.fail(error)
        self._waiting = collections.deque(each for each in self._waiting if each.handle is not handle)
        for slot in self._table.busy:
            if self._table.completions[slot].handle is handle:
                self._table.release(slot)

    def _admit(self) -> list[Completion]:
        """Assigns slots to waiting prompts, and reads them side by side.

        Returns:
          The completions that may write nothing, and so are finished.
        """
        assigned: list[Assigned] = []
        forks: list[_Fork] = []
        while self._waiting and self._table.free and not self._is_worth_waiting(assigned):
            completion = self._pop()
            self._fit(len(completion.handle.prompt))
            slot, source, shared = self._table.choose(completion.handle.prompt)
            if PromptScorer.is_wanted(completion.handle):
                source, shared = slot, 0  # every token of the prompt is read
            if not self._assign(slot, completion):
                continue
            if shared and source != slot:
                self._slots.fork(source, slot)
            assigned.append(Assigned(slot, completion, shared))
            while self._waiting and self._table.free and self._waiting[0].handle is completion.handle:
                sibling, other = self._pop(), self._table.free[0]  # of the same prompt
                if self._assign(other, sibling):
                    forks.append(_Fork(slot, other, sibling))
        # A request that failed at its last sample has lost the slots of the first ones.
        assigned = [each for each in assigned if self._table.completions[each.slot] is each.completion]
        forks = [each for each in forks if self._table.completions[each.slot] is each.completion]
        self._prefill(self._weights, self._slots, assigned)
        for fork in forks:
            self._slots.fork(fork.source, fork.slot)
        if self._may_share:
            for each in (*assigned, *forks):
                self._table.retain(each.slot, each.completion.handle.prompt)
        self._admitting = []
        done = []
        for each in (*assigned, *forks):
            if each.completion.handle.result is None:
                done += self._guarded(self._begin, each.slot, each.completion)
        return done

    @property
    def _may_share(self) -> bool:
        """Returns whether equal beginnings of prompts are equal in the cache.

        They are not where the rotation depends on the length of the whole prompt.
        """
        configs = self._forward.configs
        return all(each.rope_scaling is None or each.rope_scaling.kind != "longrope" for each in configs)

    def _is_worth_waiting(self, assigned: Sequence[Assigned]) -> bool:
        """Returns whether the next prompt begins as one that is about to be read, and so had better be a copy of that."""
        new = [each.completion.handle.prompt for each in assigned] if self._may_share else []
        return self._table.profits(self._waiting[0].handle.prompt, new)

    def _begin(self, slot: int, completion: Completion) -> None:
        """Tells whoever watches that a prompt has been read; ends a completion that may write nothing."""
        completion.begin()
        if completion.finish_reason:
            self._finish(slot, completion)

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
            self._adjuster.assign(slot, completion)
            self._table.assign(slot, completion)
            completion.handle.started = completion.handle.started or time.monotonic()
        except Exception as error:
            self._drop(completion.handle, error)
            return False
        return True

    def _decode(self) -> Decoded:
        """Draws some tokens for every slot: by verifying what was looked up, or one after the other."""
        proposals = None if self._lookup is None else self._lookup.propose(self._table.completions)
        if proposals is not None:
            return self._verify(proposals)
        slots = self._table.slots
        left = max(int(slots.limit[slot] - slots.generated[slot]) for slot in self._table.busy)
        steps = min(self._most_steps(), left)
        self._fit(0, steps, shrink=True)
        adjustments = self._adjuster.arguments(self._table.completions, steps)
        state = None if adjustments is None else self._adjuster.state
        *after, decoded, state = self._programs.decode(
            self._weights,
            *self._slots.state,
            self._table.arguments(),
            np.int32(steps),
            jax.tree.map(np.copy, self._hook_slots),
            self._hook_shared,
            state,
            adjustments,
        )
        self._slots.take(*after)
        self._adjuster.state = state if adjustments is not None else self._adjuster.state
        if self._lookup is not None:
            self._lookup.take({})
        return jax.device_get(decoded)

    def _verify(self, proposals: Int[np.ndarray, "S N"]) -> Decoded:
        """Draws a token for every slot, and takes the proposals behind it as far as they are what would be drawn."""
        self._fit(0, proposals.shape[1], shrink=True)
        arguments = self._table.arguments(), proposals
        *after, decoded, pending = self._programs.verify(self._weights, *self._slots.state, *arguments)
        self._slots.take(*after)
        decoded, pending = jax.device_get((decoded, pending))
        busy = ((slot, self._table.completions[slot]) for slot in self._table.busy)
        self._lookup.take({each: int(pending[slot]) for slot, each in busy if PromptLookup.applies(each)})
        return decoded

    def _most_steps(self) -> int:
        """Returns how many tokens may be drawn before the host, or somebody who watches, needs to see them."""
        busy = [self._table.completions[slot] for slot in self._table.busy]
        if any(each.handle.on_delta is not None for each in busy):
            return 1
        if self._lookup is not None and any(map(PromptLookup.applies, busy)):
            return 1
        follow = [each.constraint is not None for each in busy]
        if any(follow):
            return 1 if all(follow) else self._steps_beside_grammars
        return self._steps

    def _take(self, decoded: Decoded) -> list[Completion]:
        """Hands the tokens to the completions; returns those that are finished."""
        done = []
        for slot, completion in enumerate(self._table.completions[:]):
            if completion is not None and completion.handle.result is None:  # else free, or another sample has failed
                done += self._guarded(self._advance, slot, completion, decoded)
        return done

    def _guarded(self, act: Callable[..., None], slot: int, completion: Completion, *rest: Any) -> list[Completion]:
        """Returns the completion if it is finished after a step of it; what the step raises ends its request alone."""
        try:
            act(slot, completion, *rest)
        except Exception as error:  # of the callback, of the tokenizer, of the grammar: one request's
            self._drop(completion.handle, error)
            return []
        return [completion] if completion.finish_reason else []

    def _advance(self, slot: int, completion: Completion, decoded: Decoded) -> None:
        """Hands a slot's tokens to its completion, and frees the slot if that is finished."""
        count = int(decoded.alive[:, slot].sum())
        if count:
            completion.handle.first_token = completion.handle.first_token or time.monotonic()
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
            self._finish(slot, completion)
        else:
            self._adjuster.advance(slot, completion)
            completion.report()

    def _finish(self, slot: int, completion: Completion) -> None:
        """Frees the slot of a finished completion, and hands the completion to its request."""
        self._table.release(slot)
        completion.report()
        completion.handle.finish(completion.number, completion.sample())

    def _fit(self, length: int, steps: int = 0, shrink: bool = False) -> None:
        """Makes the cache long enough for a new prompt and for the tokens to come, and not much longer."""
        lengths = [int(self._table.slots.length[slot]) for slot in self._table.busy]
        need = max(length, *(have + steps for have in lengths), 1) if lengths else max(length, 1)
        if self._slots.fit(need, shrink and not self._waiting):
            self._table.forget()
