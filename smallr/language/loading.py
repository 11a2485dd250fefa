"""Opens an engine from the name of a model."""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax.sharding import Mesh

from smallr.core.programs import keep_programs
from smallr.core.sharding import make_mesh
from smallr.data.templates import DATE, parse_date, with_date
from smallr.language.advantages import open_advantage
from smallr.models.decoder import Decoder
from smallr.models.loading import ModelSource, abstract_decoder, load_decoder, stored_parameters
from smallr.models.weights import StoredParameters
from smallr.sampling.engine import Engine
from smallr.sampling.prompts import end_ids
from smallr.sampling.weights import Packer, Weights
from smallr.training.digest import tree_digest
from smallr.training.opening import open_trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Holds a model that is ready to complete.

    Attributes:
      engine: with the weights on the mesh.
      identity: see the function of that name; empty if it was not asked for.
    """

    engine: Engine
    identity: str


def load_engine(
    name: str,
    *,
    dtype: str = "bfloat16",
    decode_slots: int = 32,
    max_length: int | None = None,
    date: str = DATE,
    advantage: str = "",
    beta: float = 1.0,
    is_identified: bool = True,
    lookup: int = 0,
) -> Loaded:
    """Loads a model over all devices.

    Args:
      name: a run's workdir, one of its checkpoints' folders, an adapter in PEFT's format, or any model that training
        takes; with `advantage` empty for the policy that its run began from.
      dtype: of the computation, float32 or bfloat16.
      decode_slots: the sequences that are decoded at once.
      max_length: tokens of prompt and completion together; None as `Engine` has it.
      date: that the chat template writes where it writes today's.
      advantage: a run with Q heads whose advantages steer the model; empty for none. See `advantages`.
      beta: how many nats an advantage of 1 is worth.
      is_identified: whether results are kept under the model's identity, which takes a pass over all weights.
      lookup: see `Engine`.

    Raises:
      UserError: no such model, a run without a checkpoint, or a model that cannot hold `max_length`; as `advantages`.
    """
    keep_programs()
    steered = open_advantage(advantage, beta) if advantage else None
    mesh = make_mesh(1, 1, -1)
    source = open_trained(name or steered.policy)

    is_kept = bool(steered) or is_identified  # the decoder itself is wanted, not only what is made of it
    stored = None if is_kept or not _is_one_cpu(mesh) else stored_parameters(source, dtype=dtype)

    with jax.set_mesh(mesh), ThreadPoolExecutor(1) as beside:
        reading = beside.submit(_read, source, mesh, dtype, stored)
        tokenizer = source.quick_tokenizer()
        options = {"arrays" if stored is None else "packed": reading.result}
        if steered:
            options = steered.engine_options(reading.result(), tokenizer, mesh)
        engine = Engine(
            reading.result() if steered else abstract_decoder(source, dtype=dtype),
            tokenizer,
            mesh,
            decode_slots=decode_slots,
            max_length=max_length,
            end_ids=end_ids(source),
            date=date,
            lookup=lookup,
            **options,
        )
        if not is_identified:
            return Loaded(engine, "")
        of_policy = identity(reading.result(), tokenizer, engine.end_ids, engine.max_length, date)
        return Loaded(engine, of_policy + (steered.identity if steered else ""))


def _read(source: ModelSource, mesh: Mesh, dtype: str, stored: StoredParameters | None) -> Decoder | Weights:
    """Reads a decoder, or what is decoded with where a file's parameters are given."""
    with jax.set_mesh(mesh):
        if stored is None:
            return load_decoder(source, mesh, dtype=dtype)
        abstract = abstract_decoder(source, dtype=dtype)
        return Packer(abstract, mesh).read(abstract, stored)


def _is_one_cpu(mesh: Mesh) -> bool:
    return mesh.size == 1 and jax.default_backend() == "cpu"


def identity(
    decoder: Decoder, tokenizer: PreTrainedTokenizerFast, ends: tuple[int, ...], max_length: int, date: str = DATE
) -> str:
    """Returns what a local model's results are filed under: all that changes them, but for the request.

    The number of decode slots and the devices do too, in the last bits of a log-prob; a result is not computed again for that.
    """
    template = with_date(tokenizer.get_chat_template(), parse_date(date)) if tokenizer.chat_template else ""
    texts = hashlib.sha256((tokenizer.backend_tokenizer.to_str() + template).encode()).hexdigest()
    return f"local {tree_digest(nnx.state(decoder))} {decoder.config.dtype} {texts} {ends} {max_length}"


def load_trained(name: str, mesh: Mesh, tokenizer: str = "", **overrides: Any) -> tuple[ModelSource, Decoder]:
    """Loads the source of a model and its decoder with the parameters that training left, adapters merged.

    Args:
      name: see `load_engine`.
      mesh: see `load_decoder`.
      tokenizer: a folder or hub id whose tokenizer comes in place of the model's own.
      **overrides: fields of DecoderConfig.

    Raises:
      UserError: see `load_engine`.
    """
    source = open_trained(name, tokenizer)
    return source, load_decoder(source, mesh, **overrides)
