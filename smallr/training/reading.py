"""Reads the weights that a run begins from, beside other work where it can."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from smallr.models.decoder import Decoder
from smallr.models.loading import ModelSource
from smallr.training.policy import read_decoder

Read = tuple[Decoder, str]  # see `read_decoder`


class WeightReader:
    """Reads a run's decoder, in a thread of its own from `begin` on.

    Several processes read when they are asked: their threads might meet in another order.
    """

    def __init__(self, source: ModelSource, config: ConfigDict, mesh: Mesh):
        self._source, self._config, self._mesh = source, config, mesh
        self._begun: Future[Read] | None = None
        self._is_dropped = threading.Event()

    def begin(self) -> None:
        """Begins to read, unless that is so already."""
        if self._begun is None and jax.process_count() == 1:
            pool = ThreadPoolExecutor(1)
            self._begun = pool.submit(self._read, self._check)
            pool.shutdown(wait=False)

    def take(self) -> Read:
        """Returns what `read_decoder` gives; asked again, it reads again.

        Raises:
          UserError: see `load_decoder`.
        """
        begun, self._begun = self._begun, None
        return begun.result() if begun else self._read()

    def drop(self) -> None:
        """Stops reading what nobody has taken; the parameter that is being read is waited for."""
        if self._begun is not None:
            self._is_dropped.set()
            self._begun.exception()

    def _read(self, check: Callable[[], None] | None = None) -> Read:
        with jax.set_mesh(self._mesh):
            return read_decoder(self._source, self._config, self._mesh, check)

    def _check(self) -> None:
        if self._is_dropped.is_set():
            raise InterruptedError("nobody wants the weights any more")
