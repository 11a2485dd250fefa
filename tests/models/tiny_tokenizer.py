"""How the tokenizer of tiny-random was made from SmolLM2's: `python -m tests.models.tiny_tokenizer` writes it anew.

It holds SmolLM2's special tokens, the bytes, and the merges that the texts below need, filled up with SmolLM2's first
merges to `SIZE` tokens. Those texts have therefore the tokens that SmolLM2 gives them; any other text has more of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import smallr.models
from smallr.data.sources import load_rows
from smallr.models.export import write_json
from smallr.models.loading import open_model

FOLDER = Path(smallr.models.__file__).parent / "tiny_random"
SIZE = 1280
ANSWERS = ("yes", "no", "Yes", "No", "true", "false", "True", "False", "A", "B", "C", "D", "E")
CHAT = (
    "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "user\nassistant\nAnswer:",
    *ANSWERS,
    *(f" {answer}" for answer in ANSWERS),
)


def texts() -> list[str]:
    """Texts of the built-in data and of chats."""
    found = [*CHAT]
    for kind in ("preference", "rationale"):
        for split in ("train[:2000]", "test"):
            rows = load_rows(f"builtin:arithmetic/{kind}", split)
            found += [value for row in rows for value in row.values() if isinstance(value, str)]
    return found


def reduced(whole: dict[str, Any], needed: set[str]) -> dict[str, Any]:
    """A `tokenizer.json` of byte-level BPE with `SIZE` of its tokens: those needed, then the first ones.

    Tokens keep their order, so that merges keep their ranks and special tokens at the beginning their ids.
    """
    merges = [tuple(merge) for merge in whole["model"]["merges"]]
    parts = {first + second: (first, second) for first, second in reversed(merges)}
    kept, open_tokens = set(), list(needed)
    while open_tokens:
        token = open_tokens.pop()
        if token not in kept:
            kept.add(token)
            open_tokens += parts.get(token, ())
    order = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get)
    # What is no merge's result is a special token or a byte.
    kept |= {token for token in order if token not in parts}
    for token in order:
        if len(kept) == SIZE:
            break
        kept.add(token)
    vocabulary = {token: index for index, token in enumerate(token for token in order if token in kept)}
    merges = [list(merge) for merge in merges if "".join(merge) in kept and kept.issuperset(merge)]
    added = [{**token, "id": vocabulary[token["content"]]} for token in whole["added_tokens"]]
    return {**whole, "added_tokens": added, "model": {**whole["model"], "vocab": vocabulary, "merges": merges}}


def make() -> dict[str, Any]:
    """The `tokenizer.json` of tiny-random."""
    backend = open_model("smollm2-135m-instruct").tokenizer().backend_tokenizer
    needed = {token for encoding in backend.encode_batch(texts()) for token in encoding.tokens}
    return reduced(json.loads(backend.to_str()), needed)


def main() -> None:
    """Writes the folder that the package holds."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    smollm2 = open_model("smollm2-135m-instruct").tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(make())),
        chat_template=smollm2.chat_template,
        model_max_length=smollm2.model_max_length,
        clean_up_tokenization_spaces=False,
        **{name: str(token) for name, token in smollm2.special_tokens_map.items()},
    )
    tokenizer.save_pretrained(FOLDER)
    compact = json.loads((FOLDER / "tokenizer.json").read_text())
    (FOLDER / "tokenizer.json").write_text(json.dumps(compact, ensure_ascii=False, separators=(",", ":")) + "\n")
    # transformers 5 writes a name of its own that earlier versions do not know.
    path = FOLDER / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"})


if __name__ == "__main__":
    main()
