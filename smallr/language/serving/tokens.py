"""Adds the routes that turn texts into tokens and back, as vLLM has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest

from smallr.core.errors import UserError
from smallr.language.serving.bodies import Detokenize, TokenizeChat, TokenizeText, blamed, parse
from smallr.language.serving.border import read_fields
from smallr.sampling.codec import PromptCodec


def add_token_routes(
    app: FastAPI, codec: PromptCodec, check_model: Callable[[str | None], None], *, max_length: int, max_body_bytes: int
) -> None:
    """Adds the routes.

    Args:
      app: the application.
      codec: of the model.
      check_model: for the model that a body names.
      max_length: tokens of prompt and completion together, which is told.
      max_body_bytes: see `make_app`.
    """

    @app.post("/tokenize")
    async def tokenize(http: HttpRequest) -> dict[str, Any]:
        fields = await read_fields(http, max_body_bytes)
        body = parse(TokenizeChat if fields.get("messages") is not None else TokenizeText, fields)
        check_model(body.model)
        try:
            ids = await asyncio.to_thread(codec.encode, body.request(), specials=body.add_special_tokens)
            strings = [codec.decode([token]) for token in ids] if body.return_token_strs else None
        except UserError as error:
            raise blamed(str(error)) from error
        return {"count": len(ids), "max_model_len": max_length, "tokens": ids, "token_strs": strings}

    @app.post("/detokenize")
    async def detokenize(http: HttpRequest) -> dict[str, Any]:
        body = parse(Detokenize, await read_fields(http, max_body_bytes))
        check_model(body.model)
        try:
            return {"prompt": await asyncio.to_thread(codec.decode, body.tokens)}
        except UserError as error:
            raise blamed(str(error)) from error

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        return codec.info()
