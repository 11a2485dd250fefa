"""Makes the update rules that `config.optimizer.name` can be; each gets clipped gradients, a rate and a weight decay.

AdamW sees the tree of parameters, so that its checkpoints stay as they are. The others see matrices (`matrices`), and label
each parameter with the rule that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from smallr.training.adam_8bit import LEAST, scale_by_adam_8bit
from smallr.training.matrices import VECTORS, View, Views

MATRIX, OTHER = "matrix", "other"
# Root mean square of Muon's updates, as of AdamW's, so that both take the same learning rates (arXiv 2502.16982, eq. 4).
MUON_RMS = 0.2
MUON_MOMENTUM = 0.95
ADAFACTOR_CLIP = 1.0  # the largest root mean square of an update of one matrix (arXiv 1804.04235, section 6)
FACTORED_FROM = 128  # rows and columns from which on squares are held as their factors; optax's default

Rule = Callable[[optax.Schedule, float], optax.GradientTransformation]


class Rules(NamedTuple):
    """Holds the rules of an optimizer by label, and says which one a parameter takes."""

    label: Callable[[View], str]
    rules: Mapping[str, Rule]


def decay_mask(params: Any) -> Any:
    """Returns True for parameters that weight decay applies to: all but norm scales and biases, by name."""

    def decayed(path: tuple, _: Any) -> bool:
        names = [str(getattr(entry, "key", "")) for entry in path]
        return not any(name.endswith(VECTORS) for name in names)

    return jax.tree_util.tree_map_with_path(decayed, params)


def adamw(config: ConfigDict) -> Rule:
    """Makes AdamW (arXiv 1711.05101)."""

    def rule(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
        return optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=decay, mask=decay_mask)

    return rule


def _then_step(direction: optax.GradientTransformation, rate: optax.Schedule, decay: float):
    """Adds decoupled weight decay and the learning rate to a direction."""
    return optax.chain(direction, optax.add_decayed_weights(decay, mask=decay_mask), optax.scale_by_learning_rate(rate))


def adafactor(config: ConfigDict, views: Views) -> Rules:
    """Makes Adafactor (arXiv 1804.04235) with absolute learning rates and without momentum: squares as row and column means."""

    def rule(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
        factored = optax.scale_by_factored_rms(min_dim_size_to_factor=FACTORED_FROM)
        return _then_step(optax.chain(factored, _clip_each(views)), rate, decay)

    return Rules(lambda view: OTHER, {OTHER: rule})


def _clip_each(views: Views) -> optax.GradientTransformation:
    """Bounds the root mean square of each parameter's update, layer by layer."""

    def clip(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return x / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(x))) / ADAFACTOR_CLIP)

    def update(updates: Mapping[str, Any], params: Any) -> dict[str, Any]:
        return {
            path: x if isinstance(x, optax.MaskedNode) else jax.vmap(clip)(x) if views[path].stacked else clip(x)
            for path, x in updates.items()
        }

    return optax.stateless(update)


def muon(config: ConfigDict, views: Views) -> Rules:
    """Makes Muon: the momentum of each layer's matrix, made orthogonal; embeddings, heads, norms and biases by AdamW."""

    def rule(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
        def dimensions(tree: Any) -> Any:  # the axis of the layers is a batch of matrices
            return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(1, 2), tree)

        orthogonal = optax.contrib.scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=dimensions)
        even = optax.stateless_with_tree_map(lambda x, _: MUON_RMS * max(x.shape[1:]) ** 0.5 * x)
        return _in_float32(_then_step(optax.chain(orthogonal, even), rate, decay))

    return Rules(lambda view: MATRIX if view.inputs else OTHER, {MATRIX: rule, OTHER: adamw(config)})


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Asks for products at highest precision, as everywhere in float32."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.default_matmul_precision("highest"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def adamw_8bit(config: ConfigDict, views: Views) -> Rules:
    """Makes AdamW whose moments of layers' matrices are held in 8 bits; embeddings, heads, norms and biases in float32."""

    def rule(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
        return _then_step(scale_by_adam_8bit(config.b1, config.b2, config.eps, views), rate, decay)

    def label(view: View) -> str:
        return MATRIX if view.inputs and view.seen[1] * view.seen[2] >= LEAST else OTHER

    return Rules(label, {MATRIX: rule, OTHER: adamw(config)})


ON_MATRICES: Mapping[str, Callable[[ConfigDict, Views], Rules]] = {
    "adafactor": adafactor,
    "muon": muon,
    "adamw8bit": adamw_8bit,
}
NAMES = ("adamw", *ON_MATRICES)
