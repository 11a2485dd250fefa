"""Opens students and modules by the names of their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from smallr.core.sharding import make_mesh
from smallr.data.orders import FORMATS
from smallr.language.loading import load_trained
from smallr.methods.adaptive.interface import MODES
from smallr.methods.adaptive.modules import ModePrompts, Router
from smallr.methods.adaptive.stored import Vectors, described, mode_vectors, read_description, read_vectors, run_vectors
from smallr.methods.adaptive.student import Student
from smallr.models.decoder import Decoder
from smallr.models.loading import ModelSource
from smallr.models.soft import attach_soft_prompts
from smallr.sampling.prompts import end_ids
from smallr.training.digest import tree_digest
from smallr.training.saved import find_run


def open_adaptive(
    name: str, *, model: str = "", dtype: str = "float32", decode_slots: int = 32, max_length: int | None = None
) -> Router | ModePrompts:
    """Returns a module over its student.

    Args:
      name: the run that trained it, one of that run's checkpoints, or a folder that `smallr convert
        --adapter_only` made of it.
      model: the student, where it is no longer where it was in training.
      dtype: of the computation.
      decode_slots: the completions that grow at once.
      max_length: tokens of prompt and completion together; None as `Engine` has it.

    Raises:
      UserError: no such folder, a damaged one, or a module that was trained on another model.
    """
    path = Path(name).expanduser()
    run = find_run(path)
    description = described(run) if run else read_description(path)
    mesh = make_mesh(1, 1, -1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained(model or description.model, mesh, description.tokenizer, dtype=dtype)
        digest = tree_digest(nnx.state(decoder))
        if run:
            vectors = run_vectors(run, description.kind, decoder.config, digest)
        else:
            vectors = read_vectors(path, description.kind, decoder.config, digest)
        ids = _attach(decoder, vectors, mesh)
        options = {
            "formats": description.formats,
            "chat": description.chat,
            "decode_slots": decode_slots,
            "max_length": max_length,
        }
        student = _student(source, decoder, mesh, ids, **options)
    if description.kind == "mode_prompts":
        return ModePrompts(student, threshold=description.threshold)
    choices = tuple(description.choice_ids)
    return Router(student, ids["router"], choices, prompt=description.prompt, threshold=description.threshold)


def open_student(
    name: str,
    *,
    tokenizer: str = "",
    formats: Mapping[str, str] | None = None,
    chat: bool | None = None,
    prompts: str = "",
    dtype: str = "float32",
    decode_slots: int = 32,
    max_length: int | None = None,
) -> Student:
    """Returns a student without a module.

    Args:
      name: a run on rationale rows, or any model that `smallr generate` takes.
      tokenizer: a folder or hub id whose tokenizer comes in place of the model's own.
      formats: of the orders that it was trained in; by default those of the run, else `data.chat.FORMATS`.
      chat: whether questions are messages of a user; by default as in the run, else if there is a chat template.
      prompts: a folder of mode prompts, which then tell it the mode.
      dtype: of the computation.
      decode_slots: the completions that grow at once.
      max_length: tokens of prompt and completion together.

    Raises:
      UserError: no such model, or mode prompts of another one.
    """
    run = find_run(Path(name).expanduser())
    data = run.config["data"] if run else {}
    mesh = make_mesh(1, 1, -1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained(name, mesh, tokenizer, dtype=dtype)
        ids = {}
        if prompts:
            digest = tree_digest(nnx.state(decoder))
            ids = _attach(decoder, mode_vectors(Path(prompts).expanduser(), decoder.config, digest), mesh)
        if chat is None:
            chat = data.get("chat", bool(source.tokenizer().chat_template))
        formats = data.get("formats", FORMATS) if formats is None else formats
        return _student(
            source, decoder, mesh, ids, formats=formats, chat=chat, decode_slots=decode_slots, max_length=max_length
        )


def _attach(decoder: Decoder, vectors: Vectors, mesh: Mesh) -> dict[str, np.ndarray]:
    """Puts all soft prompts into one table; the ids of each."""
    attach_soft_prompts(decoder, np.concatenate(list(vectors.values())), mesh)
    ends = np.cumsum([len(values) for values in vectors.values()])
    return {
        name: -1 - np.arange(end - len(values), end) for (name, values), end in zip(vectors.items(), ends, strict=True)
    }


def _student(
    source: ModelSource, decoder: Decoder, mesh: Mesh, ids: Mapping[str, np.ndarray], **options: Any
) -> Student:
    prompts = {mode: ids[mode] for mode in MODES if mode in ids}
    return Student(decoder, source.tokenizer(), mesh, prompts=prompts, end_ids=end_ids(source), **options)
