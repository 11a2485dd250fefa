"""Two processes of one run, with caches of their own: one tokenises, the other gets its files, and differences are named."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from smallr.data import hosts
from tests.integration.test_sharding import in_processes

PROGRAM = """
import json, os, sys
import jax
port, index, out = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
os.environ["SMALLR_CACHE"] = f"{out}/cache-{index}"
import datasets
from smallr.data import hosts, tokenize as tokenizing
from smallr.data.errors import DataError
from smallr.data.hosts import tokenize_together
from smallr.data.tokenize import TokenizeOptions
from tests.data.toy_tokenizer import build

hosts._CHUNK = 1000  # so that a file is sent in several pieces
made, write = [], tokenizing.ExampleMaker.write
tokenizing.ExampleMaker.write = lambda self, folder, rows, *a, **k: made.append(len(rows)) or write(self, folder, rows, *a, **k)
texts = [{"prompt": f"what is {n}", "completion": f"it is {n}"} for n in range(300)]
options = TokenizeOptions("sft", 64, chat=False)
tokens = tokenize_together(datasets.Dataset.from_list(texts), build(eos=True), options, source="a.jsonl")
again = tokenize_together(datasets.Dataset.from_list(texts), build(eos=True), options, source="a.jsonl")
result = {"made": made, "fingerprint": tokens.fingerprint, "again": again.fingerprint, "count": len(tokens), "errors": []}
cases = {
    "another row": [row if n != 200 or index == "0" else {**row, "prompt": "what"} for n, row in enumerate(texts)],
    "fewer rows": texts[: 300 - int(index)],
    "no row is left": [{"prompt": "x " * 100, "completion": "y"}] * 3,
}
for rows in cases.values():
    try:
        tokenize_together(datasets.Dataset.from_list(rows), build(eos=True), options, source="a.jsonl")
    except DataError as error:
        result["errors"].append(str(error))
with open(f"{out}/{index}.json", "w") as file:
    json.dump(result, file)
"""


@pytest.mark.process
def test_one_process_tokenises_and_all_have_the_tokens(tmp_path, forks):
    in_processes(forks, 2, lambda port, index: ["-c", PROGRAM, str(port), str(index), str(tmp_path)], 1)
    first, second = (json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2))
    assert (first["made"][0], second["made"]) == (300, []), "the other process tokenises nothing"
    assert first["fingerprint"] == second["fingerprint"] == first["again"] == second["again"]
    assert first["count"] == second["count"] == 300
    assert first["errors"][:2] == second["errors"][:2]
    assert "process 1 of 2 reads other rows than process 0, first among rows 200 to 204" in first["errors"][0]
    assert "process 1 of 2 reads 299 rows, process 0 reads 300" in first["errors"][1]
    assert first["errors"][2].startswith("no row is left to train on")
    assert second["errors"][2].startswith("process 0: no row is left to train on")


@pytest.mark.parametrize("case", ["room", "disk full", "made meanwhile"])
def test_a_process_takes_all_that_is_sent_whatever_becomes_of_it(case, tmp_path, monkeypatch):
    """Else the others, which send and receive in step with it, would wait for ever."""
    sent, folder = [b"abc", b"de", b"fgh"], tmp_path / "tokens" / "key"
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path))
    monkeypatch.setattr(hosts, "_CHUNK", 3)
    monkeypatch.setattr(hosts, "_sent", lambda content, size: sent.pop(0))
    monkeypatch.setattr(hosts, "_gathered", lambda text: [json.dumps([["a.npy", 5], ["b/c.npy", 3]])])
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda x: np.asarray([True, False]))
    monkeypatch.setattr(hosts.jax, "process_index", lambda: 1)
    if case == "disk full":
        opened = Path.open

        def full(path, mode="r", **options):
            if mode == "wb" and path.name == "a.npy":
                raise OSError(errno.ENOSPC, "No space left on device")
            return opened(path, mode, **options)

        monkeypatch.setattr(Path, "open", full)
    if case == "made meanwhile":
        monkeypatch.setattr(hosts, "cached_folder", lambda folder, build: folder)
    hosts._share(folder)
    assert sent == []
    if case == "room":
        assert ((folder / "a.npy").read_bytes(), (folder / "b" / "c.npy").read_bytes()) == (b"abcde", b"fgh")
    else:
        assert not folder.exists(), "it is tokenised here"
