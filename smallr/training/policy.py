"""Decides which parameters are trained, and makes decoders of the trained and the frozen ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.reuse import shapes
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.heads import HEADS, HeadOptions, attach_heads, fill_heads, is_head_path
from smallr.models.loading import ModelSource, load_decoder
from smallr.models.lora import (
    DropoutKey,
    LoRA,
    add_dropout_keys,
    attach,
    fill,
    is_adapter_path,
    quantiser,
    quantize_projections,
    targets,
)
from smallr.models.peft import read_adapter
from smallr.models.soft import attach_soft_prompts, drawn_vectors, is_soft_path
from smallr.training.digest import LeafwiseDigest, tree_digest
from smallr.training.options import tokenize_options
from smallr.training.saved import find_run

NOTHING = nnx.State({})  # no frozen parameters


@dataclasses.dataclass(frozen=True)
class ModelFunctions:
    """Makes decoders of arrays.

    Attributes:
      graphdef: of the policy.
      base: of the decoder without its adapters; None if it has none.
      training: of the policy with dropout; None if it has none.
      keys: names and shapes of the dropout keys of `training`.
      target_mixing: share of the heads in their target copies after each step.
    """

    graphdef: nnx.GraphDef
    base: nnx.GraphDef | None = None
    training: nnx.GraphDef | None = None
    keys: nnx.State = dataclasses.field(default_factory=lambda: NOTHING)
    target_mixing: float = 0.0

    @property
    def identity(self) -> Hashable:
        """Returns what programs of these functions depend on; of the keys these are names and shapes."""
        return self.graphdef, self.base, self.training, shapes(self.keys), self.target_mixing

    def decoder(self, params: nnx.State, frozen: nnx.State, key: Array | None = None) -> Decoder:
        """Makes the policy; it drops where it has dropout and gets a key (typed, of this step)."""
        if self.training is None or key is None:
            return nnx.merge(self.graphdef, params, frozen)
        leaves = [
            (path, leaf.replace(jax.random.key_data(jax.random.split(jax.random.fold_in(key, index), leaf.shape[0]))))
            for index, (path, leaf) in enumerate(nnx.to_flat_state(self.keys))
        ]
        return nnx.merge(self.training, params, frozen, nnx.from_flat_state(leaves))

    def base_decoder(self, frozen: nnx.State) -> Decoder:
        """Makes the decoder without its adapters."""
        return nnx.merge(self.base, frozen)


@dataclasses.dataclass(frozen=True)
class ParameterPartition:
    """Holds a decoder, split.

    Attributes:
      config: of the decoder.
      policy: makes decoders of the two states.
      params: what is trained.
      frozen: what is not: it has no gradient, no optimizer state, and is not in checkpoints.
      digest: of `frozen` as it was loaded; empty if all is trained.
      base: how the frozen projections are held under adapters (`smallr.models.quantized.FORMATS`).
    """

    config: DecoderConfig
    policy: ModelFunctions
    params: nnx.State
    frozen: nnx.State
    digest: str = ""
    base: str = "float32"

    def start(self, params: nnx.State) -> nnx.State:
        """Returns the parameters under which the policy is the base: adapters are switched off.

        Without adapters these are `params`, which are then those of the start themselves.
        """
        if self.policy.base is None:
            return params
        return nnx.from_flat_state(
            [
                (path, leaf.replace(leaf.get_value() * 0) if path[-1] == "b" else leaf)
                for path, leaf in nnx.to_flat_state(params)
            ]
        )

    def start_digest(self, params: nnx.State) -> str:
        """Returns the digest of all weights that `start` gives, for caches of what was computed with them."""
        if not self.digest:
            return tree_digest(params)
        return f"lora {self.base} {self.digest}" if self.policy.base else f"{self.digest} {tree_digest(params)}"

    def digest_now(self, params: nnx.State) -> str:
        """Returns the digest of all weights as they are with the trained parameters `params`."""
        if self.policy.base is None:
            return self.start_digest(params)
        return f"{self.digest} {tree_digest(params)}"  # the start of adapters is their base alone


def load_policy(source: ModelSource, config: ConfigDict, mesh: Mesh) -> ParameterPartition:
    """Loads a model and splits it.

    Raises:
      UserError: see `load_decoder` and `prepare_policy`.
    """
    decoder, digest = read_decoder(source, config, mesh)
    return prepare_policy(decoder, config, mesh, digest)


def read_decoder(
    source: ModelSource, config: ConfigDict, mesh: Mesh, check: Callable[[], None] | None = None
) -> tuple[Decoder, str]:
    """Loads a model as a run computes with it; a quantised base is quantised while it is read, so that it is never held whole.

    Args:
      source: of the model.
      config: of the run.
      mesh: where the parameters go.
      check: called for each parameter; what it raises ends the reading.

    Returns:
      The decoder, and the digest of the parameters as they were before they were quantised; empty if they are not.

    Raises:
      UserError: see `load_decoder`.
    """
    compute = config.compute
    quantised = "lora" in config and config.lora.base != "float32"
    quantise = quantiser(source.config, config.lora.base, mesh) if quantised else None
    digest = LeafwiseDigest()

    def convert(path: tuple[str, ...], variable: nnx.Variable) -> nnx.Variable:
        if check is not None:
            check()
        if quantise is None:
            return variable
        digest.add("/".join(path), variable.get_value())
        return quantise(path, variable)

    options = {"dtype": compute.dtype, "remat": compute.remat, "attention": compute.attention}
    decoder = load_decoder(source, mesh, convert, **options)
    return decoder, digest.value() if quantised else ""


def prepare_policy(decoder: Decoder, config: ConfigDict, mesh: Mesh, base_digest: str = "") -> ParameterPartition:
    """Splits a loaded decoder as `config.freeze`, `config.lora` and `config.soft` say; `config.heads` adds heads, which are
    always trained.

    Args:
      decoder: as loaded; changed in place.
      config: of the run.
      mesh: of the decoder.
      base_digest: of the parameters as they were before they were quantised; empty: they are not yet.

    Raises:
      UserError: a regular expression that finds nothing, or leaves nothing to train.
    """
    if "soft" in config:
        return _with_soft_prompts(decoder, config, mesh)
    if "lora" in config:
        return _with_adapters(decoder, config, mesh, base_digest)
    frozen = frozen_paths(decoder, config.freeze, leave_some="heads" not in config) if config.freeze else set()
    add_heads(decoder, config, mesh)
    graphdef, still, params = nnx.split(decoder, lambda path, _: ".".join(path) in frozen, ...)
    digest = tree_digest(still) if frozen else ""
    return ParameterPartition(decoder.config, _functions(config, graphdef), params, still, digest)


def add_heads(decoder: Decoder, config: ConfigDict, mesh: Mesh) -> None:
    """Gives the decoder the heads of `config.heads`: fresh ones, or those of the run `config.heads.start`."""
    if "heads" not in config:
        return
    if config.heads.start:
        attach_saved_heads(decoder, config.heads.start, mesh, HeadOptions.from_fields(config.heads))
    else:
        attach_heads(decoder, HeadOptions.from_fields(config.heads), config.seed, mesh)


def attach_saved_heads(decoder: Decoder, name: str, mesh: Mesh, expected: HeadOptions | None = None) -> None:
    """Gives a decoder the heads that a run has trained.

    Args:
      decoder: of the sizes of the run's.
      name: the run's workdir, or one of its checkpoints.
      mesh: of the decoder.
      expected: what the heads must be.

    Raises:
      UserError: no such run, one without heads, or with others than expected.
    """
    run = find_run(Path(name).expanduser())
    if run is None or "heads" not in run.config:
        raise UserError(f"{name} is not a run with config.heads, so it has no heads to begin with")
    options = HeadOptions.from_fields(run.config["heads"])
    kept = dataclasses.replace(options, target_mixing=expected.target_mixing) if expected else options
    if expected not in (None, kept):
        raise UserError(
            f"config.heads.start: {name} has heads {options}, config.heads says {expected}: make them equal"
        )
    attach_heads(decoder, options, 0, mesh)
    fill_heads(decoder, lambda path: run.checkpoint.read(f"params/{HEADS}/{path.replace('.', '/')}"), mesh)


def check_freeze(config: ConfigDict) -> None:
    """Raises UserError where `config.freeze` does not go with the rest."""
    if config.freeze and "lora" in config:
        raise UserError("config.freeze: with config.lora all but the adapters is frozen; leave it empty")


def check_heads(config: ConfigDict) -> None:
    """Raises UserError where `config.heads` cannot be used, or not with the rest."""
    if "heads" not in config:
        return
    HeadOptions.from_fields(config.heads)
    if "soft" in config:
        raise UserError("config.heads: with config.soft nothing but soft prompts is trained; leave out one of them")


def _functions(config: ConfigDict, graphdef: nnx.GraphDef, base: nnx.GraphDef | None = None) -> ModelFunctions:
    mixing = config.heads.target_mixing if "heads" in config else 0.0
    return ModelFunctions(graphdef, base, target_mixing=mixing)


def frozen_paths(decoder: Decoder, pattern: str, leave_some: bool = True) -> set[str]:
    """Returns the paths of the parameters in which `config.freeze` is found.

    Raises:
      UserError: no regular expression, or one that is found nowhere, or everywhere though it must leave some.
    """
    paths = [".".join(path) for path, _ in nnx.to_flat_state(nnx.state(decoder))]
    try:
        found = {path for path in paths if re.search(pattern, path)}
    except re.error as error:
        raise UserError(f"config.freeze: {pattern!r} is no regular expression ({error})") from error
    if not found:
        raise UserError(f"config.freeze: {pattern!r} is found in none of {', '.join(paths)}")
    if leave_some and len(found) == len(paths):
        raise UserError(f"config.freeze: {pattern!r} is found in all parameters, so nothing is left to train")
    return found


def lora_of(fields: Any) -> LoRA:
    """Returns `config.lora`, as a config or as the dict of a saved one."""
    return LoRA(**{field.name: fields[field.name] for field in dataclasses.fields(LoRA)})


def _with_soft_prompts(decoder: Decoder, config: ConfigDict, mesh: Mesh) -> ParameterPartition:
    digest = tree_digest(nnx.state(decoder))
    count = config.soft.length * tokenize_options(config).soft_prompts
    attach_soft_prompts(decoder, drawn_vectors(decoder, count, config.seed), mesh)
    graphdef, params, frozen = nnx.split(decoder, lambda path, _: is_soft_path(path), ...)
    return ParameterPartition(decoder.config, ModelFunctions(graphdef), params, frozen, digest)


def check_soft(config: ConfigDict, reference: str) -> None:
    """Checks that `config.soft` goes with the rest; `reference` is the objective's.

    Raises:
      UserError: it does not.
    """
    if "soft" not in config:
        return
    if config.soft.length < 1:
        raise UserError(f"config.soft.length: {config.soft.length} vectors must be at least 1")
    if config.freeze or "lora" in config:
        raise UserError("config.soft: all but the soft prompts is frozen; leave out config.freeze and config.lora")
    if reference != "none":
        raise UserError(
            "config.soft: a reference without soft prompts could not read the rows; take an objective without one (sft, "
            "rationale, choice)"
        )
    if config.benchmark.name:
        raise UserError("config.benchmark.name: its prompts have no soft tokens, so it would measure the frozen model")


def _read_start(decoder: Decoder, lora: LoRA, folder: str, digest: str) -> None:
    """Fills the adapters from a folder in PEFT's format, which must be of the same kind."""
    stored, pairs = read_adapter(Path(folder).expanduser(), decoder.config, digest)
    ours, theirs = set(targets(decoder.config, lora)), set(pairs)
    if (lora.rank, lora.scale, ours) != (stored.rank, stored.scale, theirs):
        raise UserError(
            f"config.lora.adapter: {folder} has rank {stored.rank}, scale {stored.scale:g} and adapters on "
            f"{', '.join(sorted(theirs))}; config.lora has rank {lora.rank}, scale {lora.scale:g} and "
            f"{', '.join(sorted(ours))}: make them equal"
        )
    fill(decoder, pairs)


def _with_adapters(decoder: Decoder, config: ConfigDict, mesh: Mesh, digest: str) -> ParameterPartition:
    lora = lora_of(config.lora)
    base, weights = nnx.split(decoder)
    digest = digest or tree_digest(weights)
    del weights  # those that are quantised are to be freed one by one
    attach(decoder, lora, config.seed, mesh)
    if config.lora.adapter:
        _read_start(decoder, lora, config.lora.adapter, digest)
    quantize_projections(decoder, config.lora.base, mesh)
    add_heads(decoder, config, mesh)
    graphdef, params, frozen = nnx.split(decoder, lambda path, _: is_adapter_path(path) or is_head_path(path), ...)
    policy = _functions(config, graphdef, base)
    if lora.dropout:
        add_dropout_keys(decoder)
        training, keys, _ = nnx.split(decoder, DropoutKey, ...)
        policy = dataclasses.replace(policy, training=training, keys=keys)
    return ParameterPartition(decoder.config, policy, params, frozen, digest, config.lora.base)
