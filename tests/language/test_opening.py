"""Names of models: what they open, and what is said of those that open nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh, named_sharding
from smallr.language import loading
from smallr.language.loading import identity, load_trained
from smallr.language.local import LocalModel
from smallr.language.opening import open_language_model
from smallr.language.server import ServerModel
from smallr.sampling.requests import Request, SamplingParams
from smallr.sampling.weights import Packer
from smallr.training import opening
from smallr.training.opening import load, loaded_params
from tests.language.faulty import serving
from tests.runs import ROOT, environment


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))


def test_a_server_by_its_address():
    with serving() as server:
        with open_language_model(server.url) as alone:
            assert isinstance(alone, ServerModel)
            assert alone.name == "m"
            asked = [Request(prompt="x")]
            assert alone.complete_sync(asked)[0].samples[0].text == "echo x"
        with open_language_model(f"{server.url}#m") as named:  # the same model, so the same cache
            assert named.complete_sync(asked)[0].cached
        with open_language_model(f"{server.url}#m", cache=False, concurrency=3) as fresh:
            assert not fresh.complete_sync(asked)[0].cached
        with pytest.raises(UserError, match="Served there: m"):
            open_language_model(f"{server.url}#other")
        url = server.url
    with pytest.raises(UserError, match="no server answers"):
        open_language_model(url)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tiny-randon", r"'tiny-random'.*A model is http\(s\)://HOST"),
        ("local:nowhere", r"unknown model 'nowhere'.*A model is"),
        ("local:", r"names none.*A model is"),
        ("htp://host/v1", r"no htp:, is it http:\?.*A model is"),
        ("http:///v1", "must be the address of a server"),
    ],
)
def test_names_that_open_nothing(spec, said):
    with pytest.raises(UserError, match=said):
        open_language_model(spec)


def test_a_run_without_a_checkpoint(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no checkpoint"):
        open_language_model(f"local:{tmp_path / 'run'}")


def test_a_local_model_answers_from_its_engine_and_then_from_the_cache(loaded, monkeypatch):
    asked = {}
    monkeypatch.setattr(loading, "load_engine", lambda name, **options: asked.update(name=name, **options) or loaded)
    params = SamplingParams(max_tokens=12, temperature=1.0, n=3, logprobs=2)
    requests = [
        Request(messages=({"role": "user", "content": "One and one?"},), params=params),
        Request(prompt="Once upon a time", params=params),
        Request(prompt="far " * 200),
    ]
    wanted = loaded.engine.generate(requests, progress=False)
    with open_language_model("local:tiny-random", dtype="float32", decode_slots=4, max_length=192) as model:
        assert isinstance(model, LocalModel)
        assert asked == {"name": "tiny-random", "dtype": "float32", "decode_slots": 4, "max_length": 192} | {
            "advantage": "",
            "beta": 1.0,
        }
        first = model.complete_sync(requests)
        again = model.complete_sync(requests)
        totals = model.totals
    assert first == wanted
    assert "max_length" in first[2].error
    assert len({sample.text for sample in first[0].samples}) == 3
    assert again == [dataclasses.replace(first[0], cached=True), dataclasses.replace(first[1], cached=True), first[2]]
    assert (totals.requests, totals.cached, totals.failed) == (6, 2, 2)
    assert totals.usage == first[0].usage + first[1].usage


def test_identities_tell_apart_what_changes_the_results(loaded):
    mesh = make_mesh(1, 1, -1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained("tiny-random", mesh, dtype="float32")
        tokenizer = source.tokenizer()
        ends = loaded.engine.end_ids
        assert identity(decoder, tokenizer, ends, 192) == loaded.identity
        seen = {loaded.identity, identity(decoder, tokenizer, ends, 64), identity(decoder, tokenizer, (), 192)}
        tokenizer.chat_template += "{# as before #}"
        seen.add(identity(decoder, tokenizer, ends, 192))
        tokenizer = source.tokenizer()
        table = decoder.final_norm.scale
        table.set_value(table.get_value().at[0].add(1e-6))
        seen.add(identity(decoder, tokenizer, ends, 192))
        _, halved = load_trained("tiny-random", mesh, dtype="bfloat16")
        seen.add(identity(halved, tokenizer, ends, 192))
    assert len(seen) == 6


def test_the_parameters_of_a_run_find_their_places(monkeypatch):
    run = types.SimpleNamespace(config={"model": "tiny-random"})
    seen = {}

    def run_params(given, source):
        assert (given, source.name) == (run, "tiny-random")
        base = loaded_params(load(source))
        return lambda path: seen.setdefault(path, base(path) + len(path))

    monkeypatch.setattr(opening, "find_run", lambda path: run if path.name == "some-run" else None)
    monkeypatch.setattr(opening, "run_params", run_params)
    mesh = make_mesh(1, 1, -1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained("runs/some-run", mesh, dtype="bfloat16")
    assert (source.name, decoder.config.dtype) == ("runs/some-run", "bfloat16")
    state = nnx.to_flat_state(nnx.state(decoder))
    assert len(state) == len(seen)
    for path, leaf in state:
        np.testing.assert_array_equal(leaf.get_value(), seen[".".join(path)])
        assert leaf.get_value().sharding == named_sharding(mesh, leaf.get_metadata("axes"), leaf.shape)


@pytest.mark.process
def test_clients_of_servers_need_no_jax():
    code = (
        "import sys, smallr.language.opening, smallr.language.server\n"
        "sys.exit(any(name in sys.modules for name in ('jax', 'transformers', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=False).returncode == 0


def test_all_programs_of_a_first_answer_are_compiled_while_the_weights_are_read(monkeypatch, caplog):
    pack, before = Packer.__call__, []

    def packed(self, decoder):
        before.append(caplog.text)
        caplog.clear()
        return pack(self, decoder)

    monkeypatch.setattr(Packer, "__call__", packed)
    with jax.log_compiles():
        engine = loading.load_engine("tiny-random", dtype="float32", decode_slots=3, is_identified=False).engine
        params = SamplingParams(max_tokens=12, temperature=1.0)
        (result,) = engine.generate([Request(prompt="What is 2 + 3?", params=params)], progress=False)
    assert not result.error
    assert "Compiling jit(_draw)" in before[0]
    assert "Compiling" not in caplog.text


def test_a_model_of_a_file_is_packed_as_it_is_read_and_answers_alike(small_model, monkeypatch, caplog):
    params = SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True)
    asked = [Request(prompt="What is 2 + 3?", params=params)]
    with_decoder = loading.load_engine(small_model, dtype="float32", decode_slots=3).engine
    wanted = with_decoder.generate(asked, progress=False)
    monkeypatch.setattr(loading, "load_decoder", None)  # nobody asks for the whole decoder
    read, before = Packer.read, []

    def packed(self, decoder, stored, layers=None):
        done = read(self, decoder, stored, layers)
        before.append(stored is None)
        return done

    monkeypatch.setattr(Packer, "read", packed)
    with jax.log_compiles():
        engine = loading.load_engine(small_model, dtype="float32", decode_slots=3, is_identified=False).engine
        caplog.clear()
        (result,) = engine.generate(asked, progress=False)
    assert sorted(before) == [False, True]
    assert result == wanted[0]
    assert "Compiling" not in caplog.text
