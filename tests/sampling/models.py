"""Tiny models of transformers, one for each thing that families do differently, and engines over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from smallr.core.sharding import make_mesh
from smallr.models.decoder import Decoder
from smallr.sampling.engine import Engine
from tests.models.families.checks import tiny
from tests.models.families.models import LONG_ROPE
from tests.models.helpers import from_torch

ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False}),
    "qwen2 biases": (transformers.Qwen2Config, {}),
    "qwen3 qk-norm": (transformers.Qwen3Config, {"head_dim": 10}),
    "smollm3 nope": (transformers.SmolLM3Config, {"no_rope_layers": [1, 0, 1, 0]}),
    "gemma2 soft-caps": (transformers.Gemma2Config, {"head_dim": 10, "sliding_window": 8, **CAPS}),
    "gemma3 two bases": (
        transformers.Gemma3TextConfig,
        {
            "head_dim": 10,
            "query_pre_attn_scalar": 7,
            "sliding_window": 6,
            "rope_parameters": ROPES,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "olmo2 norms": (transformers.Olmo2Config, {}),
    "gpt2 positions": (transformers.GPT2Config, {"n_embd": 36, "n_layer": 3, "n_head": 6, "n_positions": 256}),
    "phi3 longrope": (  # of the prompts of 1, 7 and 40 tokens the last is beyond the original length, the first never are
        transformers.Phi3Config,
        {
            "hidden_size": 72,
            "num_hidden_layers": 2,
            "rope_parameters": LONG_ROPE | {"original_max_position_embeddings": 39},
            "original_max_position_embeddings": 39,
        },
    ),
    "mistral window": (transformers.MistralConfig, {"sliding_window": 16}),
}


@cache
def model(family: str) -> transformers.PreTrainedModel:
    """A random model, the same in every test."""
    config_class, fields = FAMILIES[family]
    return tiny(config_class, **fields)


@cache
def decoder(family: str) -> Decoder:
    """The same numbers."""
    return from_torch(model(family), remat="none")


@cache
def letters() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of bytes: id 0 is the end, id b + 1 the byte b for the first hundred printable ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<end>": 0} | {letter: number for number, letter in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.clean_up_tokenization_spaces = False
    return fast


def engine(family: str = "llama", tokenizer=None, **options) -> Engine:
    """An engine on one device."""
    return Engine(
        decoder(family),
        tokenizer or letters(),
        make_mesh(1, 1, 1),
        **({"decode_slots": 4, "prefill_chunk": 16, "steps": 5} | options),
    )


def greedy(family: str, prompt: Sequence[int], new: int) -> list[int]:
    """What transformers writes."""
    ids = torch.tensor([list(prompt)])
    out = model(family).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[0, len(prompt) :].tolist()
