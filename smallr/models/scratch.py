"""Makes a new model: a tokenizer trained on given texts and seeded random weights, as a folder in Hugging Face layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax import nnx

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.export import write_model
from smallr.models.loading import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TURN, END = "<|im_start|>", "<|im_end|>"  # ChatML; END ends a text too
CHAT_TEMPLATE = (
    f"{{% for message in messages %}}{TURN}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}\n{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{TURN}assistant\n{{% endif %}}"
)
FAMILIES = ("gpt2", "llama")


@dataclasses.dataclass(frozen=True)
class Size:
    """Gives the sizes of a new decoder.

    Attributes:
      family: gpt2 (learned positions, LayerNorm, GELU) or llama (rotary positions, RMSNorm, SwiGLU).
      layers, width, heads: width is a multiple of heads.
      context: the longest sequence, in tokens.
    """

    family: str = "llama"
    layers: int = 4
    width: int = 256
    heads: int = 4
    context: int = 1024

    def hf(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """Returns the `config.json` that says so.

        Raises:
          UserError: an unknown family, or a size that is none.
        """
        if self.family not in FAMILIES:
            raise UserError(f"family {self.family!r} must be one of: {', '.join(FAMILIES)}")
        if min(self.layers, self.width, self.heads, self.context) < 1 or self.width % (2 * self.heads):
            raise UserError(
                f"layers {self.layers}, width {self.width}, heads {self.heads}, context {self.context}: all must be "
                "positive, and width an even multiple of heads"
            )
        shared = {"model_type": self.family, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
        shared |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
        if self.family == "gpt2":
            of_family = {
                "n_layer": self.layers,
                "n_embd": self.width,
                "n_head": self.heads,
                "n_positions": self.context,
            }
            return shared | of_family | {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
        return shared | {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            # 8/3 of the width, so that three matrices hold what GPT-2's two do; a multiple of 16.
            "intermediate_size": max(16, round(self.width * 8 / 3 / 16) * 16),
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e4,
            "max_position_embeddings": self.context,
        }


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Trains byte-level BPE with every digit a token of its own, and ChatML as its chat template.

    Args:
      texts: what merges are learned from.
      vocabulary: most entries; 258 (bytes and two marks) is the least. Few texts give fewer.

    Raises:
      UserError: too small a vocabulary, or no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet) + 2:
        raise UserError(f"vocabulary {vocabulary}: a byte-level one has at least {len(alphabet) + 2} entries")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError("no texts to learn a vocabulary from")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, TURN], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[TURN],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_scratch(target: Path, tokenizer: PreTrainedTokenizerFast, size: Size, seed: int = 0) -> DecoderConfig:
    """Writes a model of random weights (float32, N(0, 0.02²), norms 1), which any `config.model` takes.

    Args:
      target: a folder that does not exist yet, or is empty.
      tokenizer: from `train_tokenizer`, or any other.
      size: of the decoder.
      seed: of the weights.

    Raises:
      UserError: a size that is none; the target is not empty.
    """
    hf = size.hf(tokenizer)
    config = DecoderConfig.from_hf(hf)
    weights: Mapping[tuple[str, ...], nnx.Variable] = dict(
        nnx.to_flat_state(nnx.state(Decoder(config, rngs=nnx.Rngs(seed))))
    )
    write_model(
        target,
        ModelSource(target.name, config, lambda: tokenizer, None, hf),
        lambda path: weights[tuple(path.split("."))].get_value(),
        dtype="float32",
        shard_bytes=5 * 10**9,
        card=f"# {target.name}\n\nRandom weights (seed {seed}), written by `smallr scratch`: {size}\n",
    )
    return config
