"""Opens models of the Hugging Face ecosystem: a local folder, or a repository of the hub brought into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallr.core.errors import UserError
from smallr.models.schema import GENERATION, TOKENIZER, TOKENIZER_CONFIG, check_config, damage, read_json

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
    # Its licence goes along with what is made of it.
    "README.md",
    "LICENSE*",
    "NOTICE*",
    *TOKENIZER_FILES,
)

_TOKENIZER_FIELDS = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": TOKENIZER_CONFIG,
    "special_tokens_map.json": {},
    "added_tokens.json": {},
}


def read_config(folder: Path) -> dict[str, Any]:
    """Returns `config.json` of a model folder.

    Raises:
      UserError: the folder has none; it is malformed.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: no config.json, so this is not a Hugging Face model folder")
    config = read_json(path)
    check_config(config, str(path))
    return config


def read_generation_config(folder: Path | None) -> dict[str, Any] | None:
    """Returns `generation_config.json` of a model folder; None if there is none.

    Raises:
      UserError: it is malformed.
    """
    path = folder / "generation_config.json" if folder else None
    return read_json(path, GENERATION) if path and path.exists() else None


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a model folder: `tokenizer.json` as it is, or transformers' conversion of older formats.

    Raises:
      UserError: the folder has no tokenizer; it has one without a fast version; one of its files is malformed.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name, fields in _TOKENIZER_FIELDS.items():
        if (folder / name).exists():
            read_json(folder / name, fields)

    # The generic class takes tokenizer.json literally; the model classes of transformers rebuild parts of it.
    if (folder / "tokenizer.json").exists():
        with damage(folder / "tokenizer.json"):
            return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=True)
    except ImportError:
        raise
    except Exception as error:  # of many kinds, for missing files too
        raise UserError(f"{folder}: no tokenizer.json, and no tokenizer that transformers can read") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{folder}: its tokenizer {type(tokenizer).__name__} has no fast version (tokenizer.json)")
    return tokenizer


def download(name: str, offline_choices: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """Returns the folder of a hub repository in the hub's cache, downloading what is not there.

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
