"""Makes the options of tokenisation from a config."""

from __future__ import annotations

from ml_collections import ConfigDict

from smallr.data.templates import DATE
from smallr.data.tokenize import TokenizeOptions
from smallr.data.truncation import DROP


def tokenize_options(config: ConfigDict) -> TokenizeOptions:
    """Says how `config.data` is tokenised.

    Raises:
      UserError: a choice that is none.
    """
    data, fields = config.data, {}
    if data.kind == "rationale":
        fields = {"order": data.order, "formats": dict(data.formats.items())}
    fields |= {name: tuple(data.get(name, ())) for name in ("completion_columns", "token_columns", "segment_columns")}
    if data.kind == "choice":
        fields |= {"prompt": data.prompt, "choices": tuple(data.choices)}
    return TokenizeOptions(
        data.kind,
        config.batch.row_length,
        chat=data.chat,
        format=data.get("format", ""),
        date=data.get("date", DATE),
        truncation=data.get("truncation", DROP),
        end=data.get("end", True),
        share_prompt=config.batch.get("share_prompt", True),
        soft_tokens=config.soft.length if "soft" in config else 0,
        **fields,
    )
