"""Estimates the memory of a training step on one device, from sizes alone: the cost model behind `smallr fit`.

At its fullest a step holds the state, what the layers keep for the backward pass, the gradients, and the larger of two
working sets: the head's logits, or one layer that is computed again. `tests/training/test_memory.py` compares the sum
with what XLA allocates.
"""

from __future__ import annotations

import dataclasses

from smallr.losses.logprobs import ACCELERATOR_TILE, CHUNK_MULTIPLE, CPU_TILE, FEWEST
from smallr.models.config import DecoderConfig
from smallr.training.adam_8bit import LARGEST_BLOCK

BYTES = {"float32": 4, "bfloat16": 2}
# Bytes of a frozen weight: its code, and a float32 scale for 64 weights.
BASE_BYTES = {"float32": 4.0, "int8": 1 + 4 / 64, "int4": 0.5 + 4 / 64, "nf4": 0.5 + 4 / 64}
REMATS = ("none", "dots", "full")
# Logits that are held at once, and float32 arrays of the MLP's width that the backward pass of a layer holds: XLA fuses
# less on a CPU.
PLATFORMS = {"accelerator": (ACCELERATOR_TILE, 3), "cpu": (CPU_TILE, 9)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Describes a step.

    Attributes:
      rows: packed rows of a micro-batch on one device.
      row_length: tokens of a row.
      dtype: of activations and products.
      remat: what the backward pass computes again.
      fsdp, tensor, context: devices over which the state is split; `context` splits rows as well.
      optimizer: as `config.optimizer.name`.
      lora: rank of the adapters; 0: all parameters are trained.
      base: how the projections under adapters are held.
      live: whether the reference runs in the step.
      accumulation: micro-batches of a step.
      scored: share of the tokens that are scored.
      platform: accelerator | cpu.
    """

    rows: int
    row_length: int
    dtype: str = "bfloat16"
    remat: str = "dots"
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    optimizer: str = "adamw"
    lora: int = 0
    base: str = "float32"
    live: bool = False
    accumulation: int = 1
    scored: float = 2 / 3
    platform: str = "accelerator"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Holds bytes on one device.

    Attributes:
      parameters: those that are trained and those that are not.
      optimizer: its state: both moments of AdamW, or what another optimizer has in their place.
      reference: the copy of a live reference.
      gradients: of what is trained, with the head's before it is scattered.
      activations: what all layers keep for the backward pass.
      working: the larger of the head's logits and one layer's own arrays, and the head in the compute dtype.
    """

    parameters: float
    optimizer: float
    reference: float
    gradients: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        """Returns the sum."""
        return sum(dataclasses.astuple(self))


def adapter_params(model: DecoderConfig, rank: int) -> int:
    """Counts the weights of adapters of this rank on all projections."""
    q, kv, width = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim, model.d_model
    attention = 2 * (width + q) + 2 * (width + kv)
    return model.num_layers * rank * (attention + (3 if model.gated_mlp else 2) * (width + model.d_ff))


def estimate(model: DecoderConfig, setting: Setting) -> Memory:
    """Returns the memory of a step on each device."""
    if setting.context > 1:  # a device has a part of each row, and of the state
        length, fsdp = setting.row_length // setting.context, setting.fsdp * setting.context
        memory = estimate(model, dataclasses.replace(setting, row_length=length, fsdp=fsdp, context=1))
        return dataclasses.replace(memory, working=memory.working + _gathered_keys(model, setting))
    parts = setting.fsdp * setting.tensor
    layers = model.num_layers * model.layer_matmul_params
    trained = model.num_params
    held = 4.0 * trained
    if setting.lora:
        trained = adapter_params(model, setting.lora)
        held = 4.0 * (model.num_params - layers + trained) + BASE_BYTES[setting.base] * layers
    state = 4.0 * trained / parts
    gradients = state * (2 if setting.accumulation > 1 else 1)
    table = model.vocab_size // setting.tensor * model.d_model
    if setting.fsdp > 1 and not setting.lora:
        gradients += 4.0 * table  # summed over all tokens of a device, then scattered
    return Memory(
        parameters=held / parts,
        optimizer=_optimizer(model, setting, trained) / parts,
        reference=4.0 * model.num_params / parts if setting.live and not setting.lora else 0.0,
        gradients=gradients,
        activations=_kept(model, setting),
        working=max(_head(model, setting), _layer(model, setting))
        + (table * BYTES[setting.dtype]) * (setting.fsdp > 1),
    )


def _optimizer(model: DecoderConfig, setting: Setting, trained: int) -> float:
    """Returns the bytes of the optimizer's state of all trained parameters."""
    matrices = trained if setting.lora else model.num_layers * model.layer_matmul_params
    others = trained - matrices
    if setting.optimizer == "muon":
        return 4.0 * matrices + 8.0 * others  # a momentum; AdamW's two moments
    if setting.optimizer == "adamw8bit":
        return (2 + 8 / LARGEST_BLOCK) * matrices + 8.0 * others
    if setting.optimizer == "adafactor" and not setting.lora:
        return 4.0 * (model.num_layers * _sides(model) + model.vocab_size + model.d_model)
    return 4.0 * trained if setting.optimizer == "adafactor" else 8.0 * trained


def _sides(model: DecoderConfig) -> int:
    """Returns the rows and columns of a layer's matrices together, and its norms."""
    q, kv, width = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim, model.d_model
    return 2 * (width + q) + 2 * (width + kv) + (3 if model.gated_mlp else 2) * (width + model.d_ff) + 2 * width


def _gathered_keys(model: DecoderConfig, setting: Setting) -> float:
    """Returns the bytes of keys and values of whole rows, and of their float32 gradients."""
    entries = 2 * setting.rows * setting.row_length * model.num_kv_heads * model.head_dim / setting.tensor
    return entries * (BYTES[setting.dtype] + 4)


def _kept(model: DecoderConfig, setting: Setting) -> float:
    """Returns the bytes that all layers keep: the float32 residual stream, and products unless they are computed again."""
    tokens, size = setting.rows * setting.row_length, BYTES[setting.dtype]
    residual = 4.0 * model.d_model
    queries, keys = model.num_heads * model.head_dim, 2 * model.num_kv_heads * model.head_dim
    wide = (2 if model.gated_mlp else 1) * model.d_ff
    normed = 0 if model.norm_place == "before" else 2 * model.d_model  # what the norms behind attention and MLP read
    products = size * normed + (size * (2 * queries + keys + wide) + 4.0 * model.num_heads) / setting.tensor
    more = {"full": 0.0, "dots": products, "none": products + _unnamed(model, size) / setting.tensor}
    return model.num_layers * tokens * (residual + more[setting.remat])


def _unnamed(model: DecoderConfig, size: int) -> float:
    """Returns what a token of a layer keeps besides its products where nothing is computed again.

    Those are four float32 arrays of either width, and in bfloat16 two more of the MLP's, which were cast. The numbers are
    read from compiled programs.
    """
    return 16.0 * (model.d_model + model.d_ff) + (8.0 * model.d_ff if size == 2 else 0.0)


def _head(model: DecoderConfig, setting: Setting) -> float:
    """Returns the bytes of the head's walk: a chunk of logits and of their gradient, and hidden states in float32."""
    scored = max(1, round(setting.rows * setting.row_length * setting.scored))
    vocabulary = model.vocab_size // setting.tensor
    chunk = max(PLATFORMS[setting.platform][0] // max(FEWEST, scored) // CHUNK_MULTIPLE, 1) * CHUNK_MULTIPLE
    chunk = -(-vocabulary // -(-vocabulary // min(chunk, vocabulary)))
    return 2 * 4.0 * scored * chunk + 2 * 4.0 * scored * model.d_model


def _layer(model: DecoderConfig, setting: Setting) -> float:
    """Returns the bytes of one layer in the backward pass: the MLP in float32, and its weights where they are gathered."""
    tokens, size = setting.rows * setting.row_length, BYTES[setting.dtype]
    weights = model.layer_matmul_params / setting.tensor
    gathered = weights * (2 * size + (0 if setting.lora else 4)) if setting.fsdp > 1 else 0.0
    dense = 4.0 * weights if setting.base != "float32" and setting.lora else 0.0
    arrays = PLATFORMS[setting.platform][1]
    return arrays * 4.0 * tokens * model.d_ff / setting.tensor + gathered + dense


def most_rows(model: DecoderConfig, setting: Setting, memory: float, limit: int = 1024) -> int:
    """Returns the most rows of a device that fit `memory` bytes, at most `limit`; 0 if not even one does."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = estimate(model, dataclasses.replace(setting, rows=middle)).total <= memory
        low, high = (middle, high) if fits else (low, middle)
    return low
