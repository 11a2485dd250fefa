"""Tokenises large data sets in several processes: each takes the next part of the rows until none is left.

The processes are started afresh (`tokenize_worker`): they are no forks, which JAX's threads forbid, and they import
nothing of the user's program, so that scripts and notebooks need no main guard. A part's rows are written for a worker
when it takes them, and deleted behind it; so no process holds the data set. What a worker that dies has left undone is
done here.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
from tqdm import tqdm

from smallr.data.drops import DropReport
from smallr.data.encode import backend_definition
from smallr.data.errors import DataError
from smallr.data.quick_tokenizer import whole
from smallr.data.token_set import merge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Workers take some two seconds to start, all at the same time. Two of them are faster than one process, which is
# parallel inside of the Rust tokenizer, from about 15,000 short pairs on.
LEAST_ROWS = 20_000
ROWS_PER_WORKER = 2_500
MOST_WORKERS = 64
# Rows of a part: enough to hide what a part costs, few enough that its examples are small beside the worker itself.
_MOST_ROWS = 2048
_PARTS_PER_WORKER = 8
_COMMAND = ("-P", "-m", "smallr.data.tokenize_worker")
_ROOT = str(Path(__file__).parents[2])
# Rust threads beside as many processes as cores would only be in each other's way; the worker computes nothing in JAX,
# and must not take an accelerator.
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def num_workers(rows: datasets.Dataset) -> int:
    """Returns how many processes these rows are worth: at most one for each usable core, and `$SMALLR_WORKERS`.

    Raises:
      DataError: SMALLR_WORKERS is not a number.
    """
    limit = os.environ.get("SMALLR_WORKERS", "")
    if limit and not limit.isdecimal():
        raise DataError(f"the environment variable SMALLR_WORKERS must be a number of processes, found {limit!r}")
    # Rows that Python code writes on the fly (`set_transform`) can be read in this process alone.
    if rows.format["type"] is not None or not sys.executable:
        return 1
    if len(rows) < LEAST_ROWS:
        return 1
    cores = len(os.sched_getaffinity(0))
    return max(1, min(int(limit or cores), cores, MOST_WORKERS, len(rows) // ROWS_PER_WORKER))


@contextlib.contextmanager
def turn() -> Iterator[bool]:
    """Lets one process of a user on this machine work at a time; the value is whether it had to wait.

    The processes of a run with several a machine all come here with the same rows: the first tokenises on all cores,
    the others find its result. The lock ends with the process that holds it.
    """
    path = Path(tempfile.gettempdir()) / f"smallr-tokenize-{os.getuid()}.lock"
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)) as file:
        waits = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits = True
        if waits:
            logging.warning("another process tokenises on all cores (it holds %s); waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield waits


def tokenize_parts(
    folder: Path,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    job: Mapping[str, Any],
    write_here: Callable[..., DropReport],
    new_report: Callable[[], DropReport],
    workers: int,
    progress: tqdm,
) -> DropReport:
    """Writes the `TokenSet` of rows, of which each can be tokenised by itself.

    Args:
      folder: where it goes.
      rows: all of them.
      tokenizer: if saving and loading it changes it, the work is done here.
      job: what a worker must know beside the tokenizer: `options` and `reading`.
      write_here: `write_here(folder, rows, report, start=, progress=)` does the work in this process.
      new_report: makes an empty report of the rows.
      workers: at least two.
      progress: counts rows.

    Returns:
      The report; nothing is written if no row was kept.

    Raises:
      DataError: what the first row with such an error raises.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, tokenizer = Path(tempfile.mkdtemp(prefix=".parts-", dir=folder.parent)), whole(tokenizer)
    try:
        report = new_report()
        _write_job(scratch, tokenizer, {**job, "source": report.source})
        if not _same(tokenizer, load_tokenizer(scratch)):
            logging.warning(
                "%s changes when it is saved and loaded; tokenising in one process", type(tokenizer).__name__
            )
            return write_here(folder, rows, report, progress=progress)
        size = max(1, min(_MOST_ROWS, len(rows) // (workers * _PARTS_PER_WORKER)))
        parts = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        replies = _distribute(parts, rows, scratch, workers, progress, report)
        for number, part in enumerate(parts):
            reply, target = replies.get(number), _tokens(scratch, number)
            if reply is None:
                # Some worker died of it. What it wrote is whole or not there, and is replaced.
                shutil.rmtree(target, ignore_errors=True)
                mine = rows.select(part)
                report.merge(write_here(target, mine, new_report(), start=part.start, progress=progress))
            elif "error" in reply:
                raise DataError(reply["error"])
            else:
                report.merge(DropReport.from_dict(reply["report"]))
        if report.kept:
            written = (_tokens(scratch, number) for number in range(len(parts)))
            merge(folder, [path for path in written if path.exists()], report)
        return report
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_tokenizer(job: Path) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a job's folder, as an object of the class that was saved."""
    import transformers

    description = json.loads((job / "job.json").read_text())["tokenizer"]
    kind = getattr(transformers, description["class"], transformers.PreTrainedTokenizerFast)
    tokenizer = kind.from_pretrained(str(job / "tokenizer"), local_files_only=True)
    tokenizer.name_or_path = description["name"]  # for messages
    return tokenizer


def _write_job(scratch: Path, tokenizer: PreTrainedTokenizerFast, job: Mapping[str, Any]) -> None:
    tokenizer.save_pretrained(str(scratch / "tokenizer"))
    description = {"class": type(tokenizer).__name__, "name": tokenizer.name_or_path}
    (scratch / "job.json").write_text(json.dumps({**job, "tokenizer": description}))


def _same(a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast) -> bool:
    """Returns whether two tokenizers render and encode alike."""

    def essence(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, ...]:
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        added = {number: (str(token), token.special) for number, token in tokenizer.added_tokens_decoder.items()}
        template = (tokenizer.chat_template, type(tokenizer).apply_chat_template)
        return (backend_definition(tokenizer), tokenizer.eos_token_id, special, added, template)

    return essence(a) == essence(b)


def _distribute(
    parts: Sequence[range], rows: datasets.Dataset, scratch: Path, count: int, progress: tqdm, report: DropReport
) -> dict[int, dict[str, Any]]:
    """Yields the replies of workers by the number of the part: a report or an error.

    Parts are handed out in order, and none after an error; so all parts before the first error have been handed out.
    What is missing was lost with a worker.
    """
    todo = collections.deque(range(len(parts)))
    tables = rows.with_format("arrow")
    replies: dict[int, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as busy:

        def give(worker: _Worker) -> None:
            if todo:
                number = todo.popleft()
                worker.send(number, tables, parts[number], [report.number(row) for row in parts[number]])
                busy.register(worker.pipe, selectors.EVENT_READ, (worker, number))

        for index in range(count):
            try:
                worker = _Worker(scratch, index)
            except OSError as error:  # the limit on processes, or memory
                logging.warning("no more than %d processes that tokenise could be started: %s", index, error)
                break
            give(stack.enter_context(contextlib.closing(worker)))
        while busy.get_map():
            for key, _ in busy.select():
                worker, number = key.data
                busy.unregister(worker.pipe)
                reply = worker.receive()
                if reply is None:
                    last = parts[number].stop - 1
                    what = f"rows {parts[number].start} to {last} are tokenised again, in this process"
                    logging.warning("a process that tokenises %s; %s", worker.end(), what)
                    continue
                replies[number] = reply
                if "error" in reply:
                    todo.clear()
                progress.update(len(parts[number]))
                give(worker)
    if todo and not any("error" in reply for reply in replies.values()):
        logging.warning(
            "no process that tokenises is left; %d rows remain for this one", sum(map(len, parts[todo[0] :]))
        )
    return replies


def _tokens(scratch: Path, number: int) -> Path:
    return scratch / f"tokens-{number}"


class _Worker:
    """Runs one process, and knows the one part that it is at."""

    def __init__(self, scratch: Path, index: int) -> None:
        self._scratch = scratch
        self._log = (scratch / f"worker-{index}.log").open("w+b")
        path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, *_COMMAND, str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            process_group=0,  # so that an interrupt from the keyboard is this process's alone to handle
        )
        self.pipe = self._process.stdout

    def send(self, number: int, tables: datasets.Dataset, part: range, numbers: list[int]) -> None:
        """Hands over a part of rows in the format "arrow", with their numbers in the whole split.

        If the process is gone, `receive` tells.
        """
        # With the features of the data set, so that the worker reads the same Python values.
        table = tables[part.start : part.stop].replace_schema_metadata(tables.features.arrow_schema.metadata)
        self._rows = self._scratch / f"rows-{number}.arrow"
        with pa.OSFile(str(self._rows), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        request = {"rows": str(self._rows), "start": part.start, "tokens": str(_tokens(self._scratch, number))}
        request["numbers"] = numbers
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any] | None:
        """Returns the reply, None if the process ended without one."""
        line = self.pipe.readline()
        self._rows.unlink()
        return json.loads(line) if line.endswith(b"\n") else None

    def end(self) -> str:
        """Says how it ended, as the end of a sentence."""
        status = self._process.wait()
        if status < 0:
            reason = f"was killed by {signal.Signals(-status).name}"
            return f"{reason} (out of memory?)" if status == -signal.SIGKILL else reason
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {status} ({lines[-1] if lines else 'no message'})"

    def close(self) -> None:
        """Ends the process; it holds nothing that must be kept."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self.pipe, self._log):
            with contextlib.suppress(BrokenPipeError):
                file.close()
