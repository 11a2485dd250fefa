"""Writes the model as a Hugging Face folder while it is trained, and uploads it, without holding up the steps.

A step waits until the parameters are copied to the host, and for the folder before that one if it is not written yet;
writing and uploading go on beside the next steps. What fails on the way is a warning and is counted: it never ends a run.
"""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import logging
from flax import nnx
from huggingface_hub.utils import disable_progress_bars
from jax.experimental import multihost_utils
from jaxtyping import Array
from ml_collections import ConfigDict

from smallr.core.background import Worker
from smallr.core.errors import UserError
from smallr.models.export import write_model
from smallr.models.hub import HubRepo, UploadError, open_repo
from smallr.models.loading import ModelSource
from smallr.models.names import is_hub_id
from smallr.models.peft import check_whole, write_adapter
from smallr.models.projection import adapter_name
from smallr.training.card import Training, adapter_card, model_card
from smallr.training.exporting import ExportOptions, parse_size, peft_base
from smallr.training.policy import lora_of
from smallr.training.progress import log
from smallr.training.report import before

if TYPE_CHECKING:
    from smallr.training.trainer import Trainer

FOLDER = "hf"
RETRY_SECONDS = (10.0, 60.0, 300.0)  # between an upload that failed and the next try
GRACE_SECONDS = 30.0  # that a run which is ended early waits for an upload under way
_OPTIONS = ExportOptions()
Arrays = dict[str, np.ndarray]  # parameters by their dotted paths


class Publisher:
    """Writes and uploads folders of one run; process 0 alone does both.

    Attributes:
      written: folders.
      uploaded: those that are on the hub.
      failed: those that could not be written or uploaded.

    Raises:
      UserError: something in `config.checkpoint` that cannot be done, or a repository that cannot be written to.
    """

    def __init__(self, config: ConfigDict, workdir: Path, source: ModelSource):
        fields = config.checkpoint
        self._keep, name, private = fields.keep_last, fields.push_to, fields.push_private
        self.written = self.uploaded = self.failed = 0
        self._config, self._folder, self._source = config, workdir / FOLDER, source
        self._repo: HubRepo | None = None
        self._newest, self._stop = 0, threading.Event()
        self._writer: Worker | None = None
        self.active = bool(fields.hf_every or name)
        if not self.active:
            return
        self._base = check(config, source)
        if jax.process_index() == 0:
            if name:
                self._repo = open_repo(name, private=private)
                self._uploader = Worker("smallr-upload")
                disable_progress_bars()  # the terminal has the bar of the steps
            self._writer = Worker("smallr-hf-folder")

    def save(self, trainer: Trainer) -> None:
        """Copies the model as it is now, and has it written and uploaded. All processes call it."""
        if not self.active:
            return
        if self._writer is not None:
            self._writer.wait()  # so that there is at most one copy
        step, arrays = trainer.step, self._copy(trainer)
        if self._writer is None:
            return
        training = Training.at(trainer.workdir, trainer.config.to_dict(), step, before(trainer))
        self._writer.submit(functools.partial(self._write, step, arrays, training, trainer.partition.digest))

    def close(self, patient: bool = True) -> None:
        """Waits for what is under way; without patience, at the end of a run that was stopped, not for long."""
        if self._writer is None:
            return
        self._writer.wait()
        if self._repo is not None:
            if not patient:
                self._stop.set()  # no more tries
            elif not self._uploader.wait(0.5):
                log(f"waiting for the upload to {self._repo.name} (Ctrl-C: end without it)")
            if not self._uploader.wait(None if patient else GRACE_SECONDS):
                logging.warning("the upload to %s was not finished", self._repo.name)
        self._writer = None

    def counts(self) -> dict[str, int]:
        """Returns how many folders were written, uploaded and failed."""
        return {"written": self.written, "uploaded": self.uploaded, "failed": self.failed}

    def lines(self) -> list[str]:
        """Returns what a report says of the folders."""
        if not self.active:
            return []
        where = f", {self.uploaded} uploaded to {self._repo.name}" if self._repo else ""
        failed = f", {self.failed} failed" if self.failed else ""
        return [f"hf folders   {self._folder}: {self.written} written{where}{failed}"]

    def _copy(self, trainer: Trainer) -> Arrays:
        """Returns the parameters that a folder holds on the host; empty in other processes than the first."""
        state = trainer.params if self._base else nnx.state(trainer.decoder())
        copies = {}
        for path, leaf in nnx.to_flat_state(state):
            value = _on_host(leaf.get_value())
            if self._writer is not None:
                copies[".".join(path)] = value
        return copies

    def _write(self, step: int, arrays: Arrays, training: Training, digest: str) -> None:
        folder = self._folder / f"step-{step}"
        try:
            if not folder.exists():  # else a resumed run has come to this step again
                write = self._write_adapter if self._base else self._write_model
                write(folder, arrays, training, digest)
            self.written += 1
        except Exception as error:  # a full disk, say: the run is worth more than the folder
            self.failed += 1
            logging.warning("step %d: %s could not be written: %s", step, folder, error)
            return
        if self._repo is None:
            self._remove_old()
            return
        self._newest = step
        self._uploader.submit(functools.partial(self._upload, step, folder))

    def _write_model(self, folder: Path, arrays: Arrays, training: Training, digest: str) -> None:
        del digest
        card = model_card(self._title(), self._source, _OPTIONS.dtype, training)
        shard_bytes = parse_size(_OPTIONS.shard_size)
        write_model(folder, self._source, arrays.pop, dtype=_OPTIONS.dtype, shard_bytes=shard_bytes, card=card)

    def _write_adapter(self, folder: Path, arrays: Arrays, training: Training, digest: str) -> None:
        write_adapter(
            folder,
            self._source,
            lora_of(self._config.lora),
            lambda path: _pair(arrays, path),
            base=self._base,
            digest=digest,
            dtype=_OPTIONS.dtype,
            card=adapter_card(self._title(), self._source, _OPTIONS.dtype, training, self._base),
        )

    def _title(self) -> str:
        return self._repo.name.partition("/")[2] if self._repo else self._folder.parent.name

    def _upload(self, step: int, folder: Path) -> None:
        """Uploads a folder, unless a newer one is waiting, and removes old ones."""
        if step == self._newest:
            if self._tried(step, folder):
                self.uploaded += 1
            else:
                self.failed += 1
                again = f"smallr push --model={folder} --repo={self._repo.name}"
                logging.warning("step %d is not on the hub; to upload it: %s", step, again)
        self._remove_old()

    def _tried(self, step: int, folder: Path) -> bool:
        """Uploads a folder, in several tries; returns whether one of them succeeded."""
        for seconds in (*RETRY_SECONDS, None):
            try:
                self._repo.upload(folder, f"step {step}")
                return True
            except UploadError as error:
                again = seconds is not None and not error.lasting and not self._stop.is_set()
                logging.warning("step %d: %s%s", step, error, f"; next try in {seconds:g} s" if again else "")
            if not again or self._stop.wait(seconds):
                return False
        return False

    def _remove_old(self) -> None:
        """Removes all but the newest folders; in the thread that is the last to need them."""
        found = [path for path in self._folder.iterdir() if path.name.removeprefix("step-").isdigit()]
        found.sort(key=lambda path: int(path.name.removeprefix("step-")))
        for path in found[: -max(1, self._keep)]:
            shutil.rmtree(path, ignore_errors=True)


def check(config: ConfigDict, source: ModelSource) -> str:
    """Returns the name by which PEFT finds the base of a LoRA run; empty for other runs.

    Raises:
      UserError: folders are asked for that cannot be written, or that nobody could use.
    """
    fields = config.checkpoint
    if fields.hf_every < 0:
        raise UserError(f"config.checkpoint.hf_every={fields.hf_every} must be at least 0")
    if "soft" in config:
        raise UserError(
            "config.checkpoint.hf_every: soft prompts are exported at the end, by smallr convert --adapter_only; set it and "
            "config.checkpoint.push_to back"
        )
    if "lora" not in config:
        return ""
    check_whole(source.config, lora_of(config.lora))
    try:
        base = peft_base(config.model)
    except UserError:
        base = ""
    if not base:
        raise UserError(
            f"config.checkpoint.hf_every: adapters are written for PEFT, which cannot load their base {config.model}: write it "
            f"by smallr convert --from={config.model} --to=FOLDER --dtype=float32, and train with --config.model=FOLDER"
        )
    if fields.push_to and not is_hub_id(base):
        raise UserError(
            f"config.checkpoint.push_to: the adapters' base {config.model} is not on the hub, so nobody could use them: put it "
            f"there (smallr push --model={config.model} --repo=OWNER/BASE), and train with --config.model=OWNER/BASE"
        )
    return base


def _on_host(value: Array) -> np.ndarray:
    """Returns a copy, which the step cannot overwrite; of an array over several processes, in each of them."""
    if value.is_fully_addressable:
        return np.array(value, copy=True)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def _pair(arrays: Mapping[str, np.ndarray], path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a and b of a projection's adapter."""
    owner, _, name = path.rpartition(".")
    return arrays[f"{owner}.{adapter_name(name)}.a"], arrays[f"{owner}.{adapter_name(name)}.b"]
