"""Opens a language model by its name."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ml_collections import ConfigDict

from smallr.core.cache import cache_dir
from smallr.core.errors import UserError
from smallr.language.base import LanguageModel
from smallr.language.cache import ResultCache

CHOICES = (
    "A model is http(s)://HOST[:PORT]/v1#MODEL for a server that speaks OpenAI's protocol (without #MODEL the only one "
    "that it serves), or local:NAME, where local: may be left out and NAME is a run, a folder or .gguf file, a built-in "
    "model or a hub id."
)


def open_language_model(
    spec: str,
    *,
    cache: bool = True,
    dtype: str = "bfloat16",
    decode_slots: int = 32,
    max_length: int | None = None,
    advantage: str = "",
    beta: float = 1.0,
    **server: object,
) -> LanguageModel:
    """Opens a language model; a server is asked whether it is there.

    Args:
      spec: see `CHOICES`.
      cache: keep results under `smallr.core.cache.cache_dir("completions")` and take from there what was asked before.
      dtype: of a local model, as the next two; see `loading.load_engine`.
      decode_slots: the sequences that are decoded at once.
      max_length: tokens of prompt and completion together; None for the context, within reason.
      advantage: a run with Q heads whose advantages steer a local model; `local:` alone is the policy it began from.
      beta: how many nats an advantage of 1 is worth.
      **server: of a server, arguments of `server.ServerModel`: api_key_env, concurrency, max_retries, timeout, …

    Raises:
      UserError: no such model; a server that is down, refuses the key or lacks the model; a run without a checkpoint.
    """
    scheme, _, rest = spec.partition(":")
    if scheme in ("http", "https"):
        if advantage:
            raise UserError(f"model {spec}: advantages steer a local model, not one behind a server")
        from smallr.language.server import ServerModel

        url, _, name = spec.partition("#")
        model = ServerModel(url, name or None, cache=_cache(cache), **server)
        try:
            model.check()
        except BaseException:
            model.close()
            raise
        return model
    name = rest if scheme == "local" else spec
    if not (name or advantage):
        raise UserError(f"model {spec!r} names none. {CHOICES}")
    if scheme != "local" and (strange := re.match(r"([a-z][a-z0-9+.-]*):", spec)) and not Path(spec).exists():
        nearest = difflib.get_close_matches(strange[1], ("local", "http", "https"), n=1)
        raise UserError(
            f"model {spec!r}: there is no {strange[1]}:"
            + (f", is it {nearest[0]}:?" if nearest else ".")
            + f" {CHOICES}"
        )
    from smallr.language.loading import load_engine  # only now is jax needed
    from smallr.language.local import LocalModel

    try:
        loaded = load_engine(
            name, dtype=dtype, decode_slots=decode_slots, max_length=max_length, advantage=advantage, beta=beta
        )
    except UserError as error:
        raise UserError(f"{error} {CHOICES}" if str(error).startswith("unknown model") else str(error)) from error
    return LocalModel(name or advantage, loaded.engine, identity=loaded.identity, cache=_cache(cache))


def open_configured(config: ConfigDict, spec: str, **steered: object) -> LanguageModel:
    """Opens a language model with the settings `cache`, `compute` and `server` of a method's or an evaluation's config.

    Args:
      config: of the method.
      spec: see `CHOICES`.
      **steered: `advantage` and `beta`, as `open_language_model` takes them.
    """
    return open_language_model(
        spec,
        cache=config.cache,
        dtype=config.compute.dtype,
        decode_slots=config.compute.decode_slots,
        max_length=config.compute.max_length or None,
        **{**config.server, "api_key_env": config.server.api_key_env or None, **steered},
    )


def _cache(wanted: bool) -> ResultCache | None:
    return ResultCache(cache_dir("completions") / "results.db") if wanted else None
