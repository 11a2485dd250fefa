"""What every family must show beside transformers: the same logits and gradients, and sizes by the published config."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from smallr.core.sharding import make_mesh
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from tests.models.helpers import by_param, from_torch, hf_dict, param_at, whole

LENGTH = 37
TINY: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 58,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def tiny(config_class: type[transformers.PretrainedConfig], **fields: Any) -> transformers.PreTrainedModel:
    """A random model of odd sizes, every parameter random: ones and zeros would hide a swap."""
    config = config_class(**(TINY | fields))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            small = value.ndim == 1
            mean = float(value.mean()) if small else 0.0  # norms around what they begin with: 0 in Gemma, else 1
            value.copy_(torch.randn(value.shape, generator=generator) * (0.3 if small else 0.15) + mean)
    return model.float().eval()


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far a decoder is from transformers' model.

    Attributes:
      decoder: in float32.
      logits: largest difference over the largest logit, float32.
      gradients: for each parameter, largest difference over the largest number of its gradient, float32.
      sizes: for each parameter, the largest number of its gradient.
      bfloat16: root mean square of our logits in bfloat16 from transformers' in float32, over that of theirs.
    """

    decoder: Decoder
    logits: float
    gradients: dict[str, float]
    sizes: dict[str, float]
    bfloat16: float


def parity(model: transformers.PreTrainedModel, length: int = LENGTH, **overrides: Any) -> Parity:
    """Compares two rows of random tokens, and the gradient of a weighted sum of their log-probs."""
    overrides = {"remat": "none"} | overrides  # compiles faster
    decoder = from_torch(model, **overrides)
    config = decoder.config
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, config.vocab_size, (2, length))
    weights = rng.standard_normal((2, length, config.vocab_size)).astype(np.float32)

    def loss(decoder):
        logits = logits_of(decoder, tokens)
        return jnp.sum(jax.nn.log_softmax(logits) * weights), logits

    with jax.set_mesh(make_mesh()):  # so that the attention of other platforms is not traced
        grads, logits = nnx.jit(nnx.grad(loss, has_aux=True))(decoder)
    expected = model(torch.tensor(tokens)).logits
    torch.sum(torch.log_softmax(expected, -1) * torch.tensor(weights)).backward()
    expected = expected.detach().numpy()
    stored = {name: value.grad.numpy() for name, value in model.named_parameters()}
    wanted = by_param(stored, config, decoder)
    got = {".".join(path): leaf[...] for path, leaf in nnx.to_flat_state(grads)}
    assert got.keys() == wanted.keys()
    if config.learned_positions:  # a shift of all keys shifts all scores of a query alike: softmax does not see it
        assert np.abs(got.pop("layers.attention.k_bias")).max() < 1e-3
        del wanted["layers.attention.k_bias"]
    model.zero_grad()
    with jax.set_mesh(make_mesh()):
        rounded = logits_of(from_torch(model, dtype="bfloat16", **overrides), tokens)
    with torch.no_grad():
        theirs = model.to(torch.bfloat16)(torch.tensor(tokens)).logits.float().numpy()
    model.float()
    ours_off, theirs_off = (np.sqrt(np.mean((np.asarray(x) - expected) ** 2)) for x in (rounded, theirs))
    return Parity(
        decoder=decoder,
        logits=relative(logits, expected),
        gradients={path: relative(got[path], want) for path, want in wanted.items()},
        sizes={path: float(np.abs(want).max()) for path, want in wanted.items()},
        bfloat16=float(ours_off / theirs_off),
    )


def check_parity(model: transformers.PreTrainedModel, length: int = LENGTH, **overrides: Any) -> Decoder:
    """Logits and every gradient within 1e-4 of the largest in float32; bfloat16 no further off than transformers'.

    Returns:
      The decoder, in float32.
    """
    found = parity(model, length, **overrides)
    assert found.decoder.config.num_params == model.num_parameters()
    assert found.logits <= 1e-4
    for path, size in found.sizes.items():
        assert size > 1e-3, f"the gradient of {path} says nothing"
        assert found.gradients[path] <= 1e-4, path
    assert 0 < found.bfloat16 <= 1.1
    return found.decoder


@nnx.jit
def logits_of(decoder: Decoder, tokens: np.ndarray) -> jax.Array:
    """Logits of plain rows."""
    hidden = decoder(jnp.asarray(tokens), *whole(tokens.shape[1], len(tokens)))
    logits = jnp.einsum("btd,vd->btv", hidden, decoder.unembedding(), precision="highest")
    cap = decoder.config.final_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def check_sees_beyond(model: transformers.PreTrainedModel, **fields: Any) -> None:
    """The parity above would notice these fields: with them changed, the logits are others."""
    tokens = np.random.default_rng(0).integers(1, model.config.vocab_size, (1, LENGTH))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    for field, value in fields.items():
        decoder = from_torch(model, **{field: value})
        with jax.set_mesh(make_mesh()):
            assert relative(logits_of(decoder, tokens), expected) > 1e-3, field


def check_table(model: transformers.PreTrainedModel) -> None:
    """The family's table leads back to every tensor, bit by bit."""
    from smallr.models.families import FAMILIES
    from smallr.models.families.base import join

    decoder = from_torch(model)
    stored = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    if decoder.config.tie_embeddings:
        del stored["lm_head.weight"]
    for name, parts in FAMILIES[decoder.config.family].stored(decoder.config).items():
        params = [np.asarray(param_at(decoder, part.param)[...]) for part in parts]
        for layer in range(decoder.config.num_layers if parts[0].stacked else 1):
            of_layer = [param[layer] if parts[0].stacked else param for param in params]
            wanted = stored.pop(name.format(layer=layer))
            np.testing.assert_array_equal(join(parts, of_layer), wanted, err_msg=name)
    assert not stored


def config_of(model: transformers.PreTrainedModel) -> DecoderConfig:
    """Through the dict that transformers would save."""
    return DecoderConfig.from_hf(hf_dict(model.config))


def relative(got: Any, want: np.ndarray) -> float:
    """Largest difference over the largest number."""
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())
