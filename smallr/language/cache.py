"""Results on disk, so that a job that was killed never pays for a request twice.

SQLite in WAL mode: a commit survives the death of the process at any instant, several processes read and write at
once, and a look-up needs neither the whole file in memory nor a scan at start. Lines appended to a file would offer
none of the three without locks and an index of our own. WAL needs a local disk (its index is shared memory), so on
network file systems point SMALLR_CACHE elsewhere. `synchronous=NORMAL`: a power cut, as opposed to a kill, may take
the last results, never the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from absl import logging

from smallr.core.errors import UserError
from smallr.sampling.requests import Request, Result, Sample, TokenLogprob, Usage

_VERSION = 1  # of keys and of what is stored; part of every key
_BUSY_SECONDS = 60.0  # how long to wait for another process that writes


def request_key(identity: str, request: Request, index: int = 0) -> str:
    """The key of a request to a model: SHA-256, in hex, of all that determines the answer.

    Args:
      identity: of the model; what its owner holds to answer alike.
      request: its messages or prompt, and every sampling parameter.
      index: which of several equal requests, where one with n samples had to be sent as n requests.
    """
    content = {
        "version": _VERSION,
        "model": identity,
        "messages": [dict(message) for message in request.messages],
        "prompt": request.prompt,
        "params": dataclasses.asdict(request.params),
        "index": index,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ResultCache:
    """Results by key, in one SQLite file. Only results without an error belong here.

    A sampled request without a seed is stored like any other: asked again, it gives the completions of the first
    time, so that a resumed job is the job that was killed. More completions of a prompt are asked for with `n`, or
    with other seeds.
    """

    def __init__(self, path: Path):
        """Opens the file, or creates it.

        Raises:
          UserError: it cannot be opened or is no cache.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, model TEXT, created REAL, result TEXT)"
            )
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cache of completions {path}: {error}. It must be a writable file on a local disk: remove it if it is "
                "damaged, or let SMALLR_CACHE name another folder."
            ) from error

    def get(self, key: str) -> Result | None:
        """The result under a key, marked `cached`; None if there is none."""
        try:
            with self._lock:
                row = self._db.execute("SELECT result FROM results WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise UserError(f"cache of completions {self._path}: {error}") from error
        return None if row is None else _result(json.loads(row[0]))

    def put(self, key: str, model: str, result: Result) -> None:
        """Stores a result; the first one under a key stays.

        A disk that is full loses the cache's use, not the result: it is warned of.
        """
        if result.error is not None:
            raise ValueError("only results without an error are stored")
        row = (key, model, time.time(), json.dumps(_fields(result)))
        try:
            with self._lock:
                self._db.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            logging.warning("cache of completions %s: %s; this result will be paid for again", self._path, error)

    def __len__(self) -> int:
        with self._lock:
            return self._db.execute("SELECT count(*) FROM results").fetchone()[0]

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()


def _fields(result: Result) -> dict[str, Any]:
    return {
        "usage": dataclasses.asdict(result.usage),
        "samples": [dataclasses.asdict(sample) for sample in result.samples],
    }


def _result(fields: dict[str, Any]) -> Result:
    return Result(tuple(map(_sample, fields["samples"])), Usage(**fields["usage"]), cached=True)


def _sample(fields: dict[str, Any]) -> Sample:
    logprobs = fields["logprobs"]
    if logprobs is not None:
        logprobs = tuple(
            TokenLogprob(**{**each, "top": tuple((token, logprob) for token, logprob in each["top"])})
            for each in logprobs
        )
    return Sample(fields["text"], fields["finish_reason"], tuple(fields["token_ids"]), logprobs)
