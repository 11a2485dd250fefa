"""Keeps results on disk, so that a job that was killed never pays for a request twice.

SQLite in WAL mode: a commit survives the death of the process at any instant, several processes read and write at
once, and a look-up needs neither the whole file in memory nor a scan at start. Lines appended to a file would offer
none of the three without locks and an index of our own. WAL needs a local disk (its index is shared memory), so on
network file systems point SMALLR_CACHE elsewhere. `synchronous=NORMAL`: a power cut, as opposed to a kill, may take
the last results, never the file.

A cache saves work and is never needed for it. So nothing that is wrong with it ends a job: each entry has a digest
and is dropped if that does not fit, a damaged file is moved aside, and without a file the job goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from absl import logging

from smallr.sampling.requests import Request, Result, Sample, SamplingParams, TokenLogprob, Usage

_BUSY_SECONDS = 60.0  # how long to wait for another process that writes
_COLUMNS = "key TEXT PRIMARY KEY, model TEXT, created REAL, result TEXT, digest TEXT"
# Parameters that are in every key.
_ALWAYS = frozenset(
    {
        "max_tokens", "temperature", "top_k", "top_p", "min_p", "n", "stop", "stop_token_ids", "ignore_eos", "seed", "round",
        "logprobs",
    }
)  # fmt: skip
_INSERT = "INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?, ?)"


def request_key(identity: str, request: Request, sample: int = 0) -> str:
    """Returns the key of a request to a model: SHA-256, in hex, of all that determines the answer.

    Args:
      identity: of the model; what its owner holds to answer alike.
      request: its messages or prompt, and every sampling parameter, with the seed and the round.
      sample: number of the first sample, where one request with n samples had to be sent as n requests.
    """
    params, default = dataclasses.asdict(request.params), dataclasses.asdict(SamplingParams())
    content = {
        "model": identity,
        "messages": [dict(message) for message in request.messages],
        "prompt": request.prompt,
        "params": {name: value for name, value in params.items() if name in _ALWAYS or value != default[name]},
        "sample": sample,
    }
    # What says nothing is left out, so that a new field leaves the keys of what was asked without it.
    options = {name: getattr(request, name) for name in ("add_generation_prompt", "continue_final_message")}
    options["template_kwargs"] = dict(request.template_kwargs)
    content |= {name: value for name, value in options.items() if value not in (None, {})}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ResultCache:
    """Keeps results by key, in one SQLite file. Only results without an error belong here.

    A sampled request without a seed is stored like any other: asked again, it gives the completions of the first
    time, so that a resumed job is the job that was killed. More completions of a prompt are asked for with `n`, with
    other seeds, or in another round.

    Args:
      path: of the file, which is created if there is none.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        with self._lock:
            self._open()

    def get(self, key: str) -> Result | None:
        """Returns the result under a key, marked `cached`; None if there is none that can be believed."""
        rows = self._execute("SELECT result, digest FROM completions WHERE key = ?", key)
        if not rows:
            return None
        try:
            text, digest = rows[0]
            if digest != _digest(key, text):
                raise ValueError("its digest does not fit")
            return _result(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logging.warning(
                "cache of completions %s: an entry is damaged (%s) and is asked for again", self._path, error
            )
            self._execute("DELETE FROM completions WHERE key = ?", key)
            return None

    def put(self, key: str, model: str, result: Result) -> None:
        """Stores a result; the first one under a key stays."""
        if result.error is not None:
            raise ValueError("only results without an error are stored")
        text = json.dumps(_fields(result))
        row = (key, model, time.time(), text, _digest(key, text))
        self._execute(_INSERT, *row)

    def __len__(self) -> int:
        rows = self._execute("SELECT count(*) FROM completions")
        return rows[0][0] if rows else 0

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._close()

    def _execute(self, statement: str, *values: Any) -> list[tuple]:
        """Runs one statement; without a file, or with one that cannot be used now, it has no rows."""
        with self._lock:
            for _ in range(2):  # again in the new file, if the old one was damaged
                if self._db is None:
                    return []
                try:
                    return self._db.execute(statement, values).fetchall()
                except sqlite3.Error as error:
                    if not _is_damage(error):  # a full disk, a lock that another process holds for a minute
                        said = "this result will be paid for again"
                        logging.warning("cache of completions %s: %s; %s", self._path, error, said)
                        return []
                    self._replace(error)
            return []

    def _open(self) -> None:
        try:
            self._connect()
        except (OSError, sqlite3.Error) as error:
            if _is_damage(error):
                self._replace(error)
            else:
                self._go_without(error)

    def _connect(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._db.text_factory = lambda stored: stored.decode(errors="replace")  # damaged: then the digest does not fit
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(f"CREATE TABLE IF NOT EXISTS completions ({_COLUMNS})")

    def _replace(self, damage: Exception) -> None:
        """Moves a damaged file aside and begins a new one."""
        self._close()
        aside = f".damaged-{time.time_ns()}-{os.getpid()}"
        try:
            for end in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):  # or another process has moved it
                    os.replace(f"{self._path}{end}", f"{self._path}{aside}{end}")
            self._connect()
            self._salvage(f"{self._path}{aside}")
        except (OSError, sqlite3.Error) as error:
            self._go_without(error)
        else:
            logging.warning(
                "cache of completions %s: %s; the file was moved to %s and a new one begun with what could be read of it",
                *(self._path, damage, f"{self._path.name}{aside}"),
            )

    def _salvage(self, damaged: str) -> None:
        """Copies the entries that can still be read; their digests are checked when they are asked for."""
        self._db.execute("BEGIN")
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(damaged)) as old:
            for row in old.execute("SELECT key, model, created, result, digest FROM completions"):
                self._db.execute(_INSERT, row)
        self._db.execute("COMMIT")

    def _go_without(self, error: Exception) -> None:
        self._close()
        logging.warning(
            "cache of completions %s: %s; going on without it. It must be a writable file on a local disk: "
            "SMALLR_CACHE names another folder",
            *(self._path, error),
        )

    def _close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self._db = None


def _is_damage(error: Exception) -> bool:
    """Returns whether a file is no database or a broken one, and not one that cannot be reached or written now."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such column" in str(error)


def _digest(key: str, text: str) -> str:
    return hashlib.sha256(f"{key} {text}".encode()).hexdigest()


def _fields(result: Result) -> dict[str, Any]:
    fields = {
        "usage": dataclasses.asdict(result.usage),
        "samples": [dataclasses.asdict(sample) for sample in result.samples],
    }
    if result.prompt_text is not None:
        logprobs = None if result.prompt_logprobs is None else list(map(dataclasses.asdict, result.prompt_logprobs))
        fields |= {"prompt_text": result.prompt_text, "prompt_logprobs": logprobs}
    return fields


def _result(fields: dict[str, Any]) -> Result:
    return Result(
        tuple(map(_sample, fields["samples"])),
        Usage(**fields["usage"]),
        cached=True,
        prompt_text=fields.get("prompt_text"),
        prompt_logprobs=_logprobs(fields.get("prompt_logprobs")),
    )


def _sample(fields: dict[str, Any]) -> Sample:
    return Sample(fields["text"], fields["finish_reason"], tuple(fields["token_ids"]), _logprobs(fields["logprobs"]))


def _logprobs(stored: list[dict[str, Any]] | None) -> tuple[TokenLogprob, ...] | None:
    if stored is None:
        return None
    return tuple(
        TokenLogprob(**{**each, "top": tuple((token, logprob) for token, logprob in each["top"])}) for each in stored
    )
