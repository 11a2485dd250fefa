"""Models of the Hugging Face ecosystem: a local folder, or a repository of the hub brought into one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallr.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)
# What a model needs; the pickles and other frameworks' copies in a repository stay where they are.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder.

    Raises:
      UserError: the folder has none; it is not JSON.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: no config.json, so this is not a Hugging Face model folder")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder: its `tokenizer.json` as it is, or transformers' conversion of an older format.

    Raises:
      UserError: the folder has no tokenizer; it has one without a fast version.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The generic class takes tokenizer.json literally; the model classes of transformers rebuild parts of it.
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer.json, and no tokenizer that transformers can read") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{folder}: its tokenizer {type(tokenizer).__name__} has no fast version (tokenizer.json)")
    return tokenizer


def download(name: str, offline_choices: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a hub repository in the hub's cache, downloading what is not there.

    Args:
      name: `owner/name`.
      files: patterns of the files that are needed.
      offline_choices: sentence for the error when the hub can not be reached.

    Raises:
      UserError: the repository does not exist or is gated; the hub can not be reached, or is switched off, and the
        model is not in the cache.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(files)))
    except errors.GatedRepoError as error:
        raise UserError(f"model {name!r} is gated: accept its licence on the hub and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"model {name!r} is not on the hub, or is private and HF_TOKEN is not set") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        why = (
            "HF_HUB_OFFLINE is set" if hub.is_offline_mode() else f"the hub can not be reached ({type(error).__name__})"
        )
        raise UserError(f"model {name!r} is not in the local cache and {why}. {offline_choices}") from error
