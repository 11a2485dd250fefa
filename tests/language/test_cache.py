"""The cache on disk: what is kept, under which keys, and that a killed job pays for nothing twice."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from smallr.language.cache import ResultCache, request_key
from smallr.language.retrying import Backoff
from smallr.language.server import ServerModel
from smallr.language.wire import wire_seed
from smallr.sampling.requests import Grammar, Request, Result, Sample, SamplingParams, TokenLogprob, Usage
from tests.language.faulty import asked, error, reply, serving

FULL = Result(
    (
        Sample("né\ud800", "stop", (1, 2), (TokenLogprob(7, "n", -0.1, (("n", -0.1), ("m", -2.5))),)),
        Sample("", "length"),
    ),
    Usage(3, 4),
)


def test_results_come_back_as_they_were(tmp_path):
    cache = ResultCache(tmp_path / "new" / "results.db")
    assert cache.get("k") is None
    cache.put("k", "m", FULL)
    cache.put("k", "m", Result((Sample("later", "stop"),)))  # the first one stays
    assert cache.get("k") == dataclasses.replace(FULL, cached=True)
    cache.close()
    again = ResultCache(tmp_path / "new" / "results.db")
    assert (again.get("k"), len(again)) == (dataclasses.replace(FULL, cached=True), 1)
    with pytest.raises(ValueError, match="without an error"):
        again.put("bad", "m", Result(error="no"))


def test_keys_differ_in_whatever_changes_the_answer():
    plain = Request(prompt="x")
    requests = [
        plain,
        Request(prompt="y"),
        Request(prompt=(1, 2)),
        Request(messages=({"role": "user", "content": "x"},)),
    ]
    requests.append(Request(messages=({"role": "system", "content": "x"},)))
    changed = {
        "max_tokens": 1, "temperature": 0.1, "top_k": 1, "top_p": 0.5, "min_p": 0.5, "n": 2, "stop": ("a",),
        "stop_token_ids": (1,), "ignore_eos": True, "seed": 0, "round": 1, "logprobs": 0,
        "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 2, "logit_bias": ((1, 1.0),),
        "grammar": Grammar("regex", "a"), "echo": True,
    }  # fmt: skip
    assert set(changed) == {field.name for field in dataclasses.fields(SamplingParams)}
    requests += [Request(prompt="x", params=SamplingParams(**{name: value})) for name, value in changed.items()]
    chat = {"messages": requests[3].messages}
    options = {"add_generation_prompt": False, "continue_final_message": True, "template_kwargs": {"thinking": False}}
    requests += [Request(**chat, **{name: value}) for name, value in options.items()]
    keys = [request_key("m", request) for request in requests]
    keys += [request_key("other", plain), request_key("m", plain, sample=1)]
    assert len(set(keys)) == len(keys)
    assert request_key("m", Request(prompt="x")) == keys[0]
    assert keys[0] == "7c14100940c4fd093e72ab2d24ecc72439323804abbae9b0b700113852394ae0"  # new fields change no key
    swapped = Request(messages=({"content": "x", "role": "user"},))
    assert request_key("m", swapped) == keys[3]


def test_a_file_that_is_no_cache_is_moved_aside(tmp_path, caplog):
    path, notes = tmp_path / "results.db", "these are notes, and a good many of them, long enough to be a header" * 20
    path.write_text(notes)
    cache = ResultCache(path)
    assert "was moved to results.db.damaged-" in caplog.text
    cache.put("k", "m", FULL)
    assert cache.get("k") == dataclasses.replace(FULL, cached=True)
    (aside,) = tmp_path.glob("results.db.damaged-*")
    assert aside.read_text() == notes


def test_without_a_file_that_can_be_written_the_job_goes_on(tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    for path in (Path("/proc/none/results.db"), tmp_path / "folder"):
        caplog.clear()
        cache = ResultCache(path)
        assert "going on without it" in caplog.text
        assert "SMALLR_CACHE" in caplog.text
        cache.put("k", "m", FULL)
        assert (cache.get("k"), len(cache)) == (None, 0)
        cache.close()


def test_an_entry_that_was_changed_is_asked_for_again(tmp_path, caplog):
    cache = ResultCache(tmp_path / "results.db")
    for change in ("replace(result, 'stop', 'stap')", "'{'", "NULL", "X'00ff'", "7"):
        caplog.clear()
        cache.put("k", "m", FULL)
        cache._execute(f"UPDATE completions SET result = {change}")
        assert cache.get("k") is None
        assert "an entry is damaged" in caplog.text
        assert len(cache) == 0
    cache.put("k", "m", FULL)
    cache.put("other", "m", Result((Sample("other", "stop"),)))
    cache._execute(
        "UPDATE completions SET (result, digest) = (SELECT result, digest FROM completions WHERE key = 'other')"
    )
    assert cache.get("k") is None  # the entry of another request
    assert cache.get("other").samples[0].text == "other"


def test_no_damage_to_the_file_gives_a_wrong_result_or_an_error(tmp_path):
    """Bytes flipped, zeroed and cut off anywhere: each look-up finds what was stored or nothing, and the next is kept."""
    wanted = {f"k{i}": Result((Sample(f"text {i} " * 20, "stop"),), Usage(i, 1)) for i in range(40)}
    whole = tmp_path / "whole.db"
    cache = ResultCache(whole)
    for key, result in wanted.items():
        cache.put(key, "m", result)
    cache.close()
    data, rng, found = whole.read_bytes(), random.Random(0), 0
    for number in range(60):
        damaged, at = bytearray(data), rng.randrange(len(data))
        if number % 3 == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif number % 3 == 1:
            damaged[at : at + 512] = bytes(len(damaged[at : at + 512]))
        else:
            del damaged[at:]
        path = tmp_path / f"{number}.db"
        path.write_bytes(damaged)
        cache = ResultCache(path)
        for turn in range(3):  # the first ones may come upon the damage
            for key, result in wanted.items():
                got = cache.get(key)
                assert got in (None, dataclasses.replace(result, cached=True))
                found += turn == 0 and got is not None
                if got is None:
                    cache.put(key, "m", result)
        assert all(cache.get(key) for key in wanted), number
        cache.close()
    assert 0.3 < found / (60 * 40) < 1


def test_a_full_disk_does_not_lose_the_result(tmp_path, caplog):
    cache = ResultCache(tmp_path / "results.db")
    (pages,) = cache._db.execute("PRAGMA page_count").fetchone()
    cache._db.execute(f"PRAGMA max_page_count = {pages}")
    cache.put("k", "m", Result((Sample("x" * 100_000, "stop"),)))
    assert "paid for again" in caplog.text
    assert cache.get("k") is None


@pytest.mark.process
def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "results.db"
    code = (
        "import sys; from pathlib import Path\n"
        "from smallr.language.cache import ResultCache; from smallr.sampling.requests import Result, Sample\n"
        "cache = ResultCache(Path(sys.argv[1]))\n"
        "for i in range(100): cache.put(f'{sys.argv[2]}{i}', 'm', Result((Sample(sys.argv[2] * i, 'stop'),)))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    cache = ResultCache(path)
    assert len(cache) == 300
    assert all(cache.get(f"{who}{i}").samples[0].text == who * i for who in "abc" for i in range(100))


def _model(url: str, path: Path, **options) -> ServerModel:
    return ServerModel(url, "m", cache=ResultCache(path), backoff=Backoff(first=0.01), max_retries=1, **options)


def test_a_second_time_costs_nothing_and_errors_are_not_kept(tmp_path):
    bad = [True]

    def behave(handler, _, body):
        handler.send(500, error("oops")) if asked(body) == "bad" and bad[0] else handler.good(body)

    requests = [Request(prompt=prompt) for prompt in ("a", "bad", "a")]
    with serving(behave) as server:
        with _model(server.url, tmp_path / "c.db") as model:
            first = model.complete_sync(requests)
            assert [result.cached for result in (first[0], first[2])] in ([False, True], [True, False])  # asked once
            assert (model.totals.usage, model.totals.cached, model.totals.failed) == (Usage(3, 2), 1, 1)
            assert server.counts() == {"a": 1, "bad": 2}
        bad[0] = False
        with _model(server.url, tmp_path / "c.db") as model:
            second = model.complete_sync(requests)
            assert [result.cached for result in second] == [True, False, True]
            assert [result.samples for result in second[::2]] == [first[0].samples] * 2
            assert model.totals.usage == Usage(3, 2)
    assert server.counts() == {"a": 1, "bad": 3}
    with _model(server.url, tmp_path / "c.db") as model:  # the server is gone: what is stored needs none
        assert all(result.cached for result in model.complete_sync(requests))


def test_the_key_of_the_account_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_API_KEY", "sk-very-secret")
    with serving() as server, _model(server.url, tmp_path / "c.db") as model:
        model.complete_sync([Request(prompt="a")])
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
        files = list(tmp_path.iterdir())
        assert files
        assert not any(b"secret" in file.read_bytes() for file in files)


def test_samples_that_had_to_be_asked_one_by_one_are_kept_one_by_one(tmp_path):
    down = [True]

    def behave(handler, _, body):
        if body.get("n", 1) > 1:
            handler.send(400, error("n must be 1"))
        elif body["seed"] == seeds[2] and down[0]:
            handler.send(500, error("oops"))
        else:
            handler.send(200, reply(f"seed {body['seed']}", chat=False))

    request = Request(prompt="x", params=SamplingParams(n=4, temperature=1.0, seed=10))
    seeds = [wire_seed(request, sample) for sample in range(4)]
    with serving(behave) as server:
        with _model(server.url, tmp_path / "c.db") as model:
            assert "oops" in model.complete_sync([request])[0].error
            assert len(server.bodies) == 1 + 3 + 2  # refused, the first, second and fourth, twice the third
        down[0] = False
        with _model(server.url, tmp_path / "c.db") as model:
            (result,) = model.complete_sync([request])
    assert [sample.text for sample in result.samples] == [f"seed {seed}" for seed in seeds]
    assert result.usage == Usage(3, 2)
    assert [body["seed"] for body in server.bodies[6:]] == [
        seeds[0],
        seeds[2],
    ]  # refused again, and the one that was missing


JOB = """
import sys; from pathlib import Path
from smallr.language.cache import ResultCache; from smallr.language.server import ServerModel
from smallr.language.wire import wire_seed
from smallr.sampling.requests import Request, SamplingParams
model = ServerModel(sys.argv[1], "m", cache=ResultCache(Path(sys.argv[2])), concurrency=4)
params = SamplingParams(temperature=1.0)
requests = [Request(prompt=f"question {i}", params=params) for i in range(20)]
results = model.complete_sync(requests, progress=lambda place, result: print(place, flush=True))
print(*[result.samples[0].text for result in results], sep="|")
"""


@pytest.mark.process
def test_a_job_killed_in_the_middle_pays_for_each_request_once(tmp_path):
    paid, lock, rest = [], threading.Lock(), threading.Event()

    def behave(handler, number, body):
        if number >= 7 and not rest.is_set():
            rest.wait(30)  # under way when the job is killed: the client is gone before anything is written
            handler.drop()
            return
        with lock:
            paid.append(asked(body))
        handler.send(200, reply(f"answer {number}", chat=False))

    with serving(behave) as server:
        command = [sys.executable, "-c", JOB, server.url, str(tmp_path / "c.db")]
        job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        done = [int(job.stdout.readline()) for _ in range(7)]
        os.kill(job.pid, signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
        rest.set()
        first = list(paid)
        assert sorted(first) == sorted(f"question {i}" for i in done)
        resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(paid) == sorted(f"question {i}" for i in range(20))
    texts = resumed.stdout.splitlines()[-1].split("|")
    assert [texts[place] for place in done] == [f"answer {first.index(f'question {place}')}" for place in done]


def test_the_file_is_in_wal_mode(tmp_path):
    ResultCache(tmp_path / "c.db")
    with sqlite3.connect(tmp_path / "c.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
