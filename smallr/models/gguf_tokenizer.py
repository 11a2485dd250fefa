"""Rebuilds the tokenizer in a GGUF file, as transformers would make it.

GGUF names the pre-tokenizer instead of holding it, so each supported name is written out here as in the
`tokenizer.json` of the model that it stands for. Guessing would change tokens silently: what a file does not say, such as
whether Phi-3's special tokens swallow the spaces behind them, is refused, and `config.tokenizer` takes its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from smallr.core.errors import UserError
from smallr.data.quick_tokenizer import QuickTokenizer
from smallr.models.gguf import GGUFFile
from smallr.models.schema import damage

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # values of tokenizer.ggml.token_type

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
SENTENCEPIECE = ("gemma2", "gemma3")  # families whose pieces are cut from the text as it is


@dataclasses.dataclass(frozen=True)
class ByteLevel:
    """Says how a byte-level tokenizer cuts a text before its merges.

    Attributes:
      pattern: regular expression of the pieces; None: GPT-2's.
      digits: every digit is a piece.
      nfc: the text is normalised to NFC first.
      ignore_merges: a piece that is a token is not cut, whatever the merges say.
      bos: begins with BOS if the file does not say whether.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False


# By the names of llama.cpp (src/llama-vocab.cpp).
PRE_TOKENIZERS: Mapping[str, ByteLevel] = {
    "gpt-2": ByteLevel(),
    "smollm": ByteLevel(digits=True),  # SmolLM, SmolLM2
    # Llama 3's files leave add_bos_token out, and its tokenizer.json puts BOS in front.
    "llama-bpe": ByteLevel(_LLAMA3, ignore_merges=True, bos=True),
    "smaug-bpe": ByteLevel(_LLAMA3, ignore_merges=True),  # SmolLM3, whose tokenizer is Llama 3's
    "dbrx": ByteLevel(_LLAMA3),  # OLMo 2
    "qwen2": ByteLevel(_QWEN2, nfc=True),  # Qwen 2, 2.5 and 3
    "deepseek-r1-qwen": ByteLevel(_QWEN2, nfc=True),
}


def gguf_tokenizer(file: GGUFFile) -> QuickTokenizer:
    """Returns the tokenizer with its special tokens and chat template.

    Raises:
      UserError: a kind of vocabulary or pre-tokenizer that is not known exactly; damaged metadata.
    """
    tokens = file.metadata("tokenizer.ggml.tokens")
    if tokens is None:
        raise UserError(f"{file.path}: no tokenizer in the GGUF metadata (tokenizer.ggml.tokens)")
    with damage(file.path):  # lists that do not fit each other
        return _rebuilt(file, tokens)


def _rebuilt(file: GGUFFile, tokens: list[str]) -> QuickTokenizer:
    special = {
        f"{name}_token": tokens[index]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (index := file.metadata(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    backend = _tokenizer(file, tokens, special)
    template = file.metadata("tokenizer.chat_template")

    def whole() -> PreTrainedTokenizerFast:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=template,
            model_max_length=file.config.max_positions,
            clean_up_tokenization_spaces=False,
            **special,
        )

    return QuickTokenizer(backend, special, template, whole)


def _tokenizer(file: GGUFFile, tokens: list[str], special: dict[str, str]) -> Tokenizer:
    from tokenizers import AddedToken

    model, pre = file.metadata("tokenizer.ggml.model"), file.metadata("tokenizer.ggml.pre", "default")
    if model == "gpt2" and pre in PRE_TOKENIZERS:
        tokenizer = _byte_level(file, tokens, pre)
    elif model == "llama" and file.family.name in SENTENCEPIECE and not file.metadata(_SPACE_PREFIX, True):
        tokenizer = _sentencepiece(file, tokens)
    else:
        raise UserError(
            f"{file.path}: tokenizer {model!r} with pre-tokenizer {pre!r} can not be rebuilt exactly (known: 'gpt2' with "
            f"{', '.join(PRE_TOKENIZERS)}; 'llama' of {', '.join(SENTENCEPIECE)}); give a folder that holds the model's "
            "tokenizer.json: config.tokenizer=FOLDER (of convert and score: --tokenizer=FOLDER)"
        )
    kinds = file.metadata("tokenizer.ggml.token_type", [1] * len(tokens))
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    user = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in user])
    # Those that the file names without marking them, as transformers adds them.
    tokenizer.add_tokens(
        [AddedToken(token, special=True) for token in special.values() if token not in {*control, *user}]
    )
    _set_template(tokenizer, file, special)
    return tokenizer


def _byte_level(file: GGUFFile, tokens: list[str], pre: str) -> Tokenizer:
    """Builds GPT-2's kind: the merges are in the file."""
    from tokenizers import Tokenizer, decoders, models

    merges = [tuple(merge.split(" ", 1)) for merge in file.metadata("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=PRE_TOKENIZERS[pre].ignore_merges))
    _set_pre_tokenizer(tokenizer, PRE_TOKENIZERS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GGUFFile, tokens: list[str]) -> Tokenizer:
    """Builds SentencePiece's BPE: the two neighbours whose union scores highest merge first, and unknown bytes are tokens.

    The merges are all ways to cut a piece into two others, by the score of the piece.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    scores = file.metadata("tokenizer.ggml.scores")
    kinds = file.metadata("tokenizer.ggml.token_type")
    merges = []
    for index in sorted((i for i, kind in enumerate(kinds) if kind == _NORMAL), key=lambda i: -scores[i]):
        piece = tokens[index]
        merges += [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocabulary and piece[cut:] in vocabulary
        ]
    unknown = tokens[file.metadata("tokenizer.ggml.unknown_token_id")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _set_pre_tokenizer(tokenizer: Tokenizer, cut: ByteLevel) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    parts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.pattern is None)]
    if cut.digits:
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if cut.pattern:
        parts.insert(0, pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()


def _set_template(tokenizer: Tokenizer, file: GGUFFile, special: dict[str, str]) -> None:
    """Puts BOS and EOS around a text, where the file asks for them."""
    from tokenizers import processors

    cut = PRE_TOKENIZERS.get(file.metadata("tokenizer.ggml.pre"))
    default_bos = cut is not None and cut.bos
    bos = special.get("bos_token") if file.metadata("tokenizer.ggml.add_bos_token", default_bos) else None
    eos = special.get("eos_token") if file.metadata("tokenizer.ggml.add_eos_token", False) else None
    if not (bos or eos):  # nothing, written as transformers writes it
        tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
        return
    around = [token for token in (bos, eos) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        pair=None,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in around],
    )
