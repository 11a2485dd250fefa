"""Models out: the same bits, the same logits in transformers, whole or not at all."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from smallr.core.errors import UserError
from smallr.models.export import new_folder, write_model
from smallr.models.loading import open_model
from smallr.models.safetensors_writer import SafetensorsWriter
from smallr.training.exporting import parse_size
from smallr.training.opening import load, loaded_params
from tests.data import toy_tokenizer
from tests.models.files import save_folder, save_gguf
from tests.models.helpers import llama3_model, qwen2_model

VOCAB = 531  # more rows than the tokenizer has tokens
MODELS = {
    "llama untied, scaled": lambda: llama3_model(vocab_size=VOCAB),
    "llama tied": lambda: llama3_model(vocab_size=VOCAB, tie_word_embeddings=True),
    "qwen2 tied": lambda: qwen2_model(vocab_size=VOCAB),
    "qwen2 untied": lambda: qwen2_model(vocab_size=VOCAB, tie_word_embeddings=False),
}


def export(name, target, dtype="float32", shard_bytes=10**9):
    source = open_model(str(name))
    write_model(target, source, loaded_params(load(source)), dtype=dtype, shard_bytes=shard_bytes, card="# A model\n")
    return target


def tensors(folder) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert ours[name].tobytes() == np.ascontiguousarray(value).tobytes(), name
        assert ours[name].shape == value.shape


def logits_of(folder, tokens) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer.build()


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", list(MODELS))
def test_a_folder_comes_back_bit_for_bit(tmp_path, name, dtype, tokenizer):
    model = MODELS[name]().to(getattr(torch, dtype))
    original = save_folder(model, tmp_path / "in", tokenizer)
    assert len(tokenizer) < model.config.vocab_size, "the vocabulary is to be padded"
    out = export(original, tmp_path / "out", dtype)
    assert_same_bits(tensors(out), tensors(original))
    tokens = np.arange(1, 41)[None]
    np.testing.assert_array_equal(logits_of(out, tokens), logits_of(original, tokens))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (original, out))
    assert {key: value for key, value in after.items() if key != "torch_dtype"} == {
        key: value for key, value in before.items() if value is not None
    }
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / file).read_bytes() == (original / file).read_bytes()
    before, after = (json.loads((folder / "generation_config.json").read_text()) for folder in (original, out))
    ends = before.get("eos_token_id", [])
    ends = [ends] if isinstance(ends, int) else ends
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = list(dict.fromkeys([*ends, end_of_turn]))
    assert after == {**before, "eos_token_id": expected if len(expected) > 1 else expected[0]}


@pytest.mark.parity
def test_shards_hold_whole_layers_and_have_an_index_that_transformers_reads(tmp_path, tokenizer):
    original = save_folder(llama3_model(vocab_size=VOCAB), tmp_path / "in", tokenizer)
    out = export(original, tmp_path / "out", shard_bytes=250_000)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors(original).values())
    assert all((out / name).stat().st_size <= 250_000 + 4096 for name in files)
    assert_same_bits(tensors(out), tensors(original))
    tokens = np.arange(1, 30)[None]
    np.testing.assert_array_equal(logits_of(out, tokens), logits_of(original, tokens))
    assert_same_bits(tensors(export(out, tmp_path / "again")), tensors(original))


@pytest.mark.parity
@pytest.mark.parametrize("make", [llama3_model, qwen2_model])
def test_gguf_becomes_a_folder_with_the_same_logits(tmp_path, make, monkeypatch, tokenizer):
    # Llama 3.1's own scaling, so that its divisors in the file can be named in config.json.
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = make(vocab_size=VOCAB, **({"rope_scaling": rope} if make is llama3_model else {}))
    path = save_gguf(model, tmp_path / "model.gguf")
    monkeypatch.setattr("smallr.models.gguf_tokenizer.gguf_tokenizer", lambda file: tokenizer)
    out = export(path, tmp_path / "out")
    tokens = np.arange(1, 60)[None]
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(logits_of(out, tokens), expected, atol=1e-5)
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert loaded("a b").input_ids == tokenizer("a b").input_ids


@pytest.mark.parity
def test_divisors_that_config_json_cannot_name_are_refused(tmp_path, monkeypatch, tokenizer):
    path = save_gguf(llama3_model(vocab_size=VOCAB), tmp_path / "model.gguf")
    monkeypatch.setattr("smallr.models.gguf_tokenizer.gguf_tokenizer", lambda file: tokenizer)
    with pytest.raises(UserError, match="divisors are not those of Llama"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_with_files_is_refused_and_left_alone(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("keep")
    with pytest.raises(UserError, match="not an empty folder"), new_folder(target):
        pass
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_an_error_leaves_nothing_and_an_empty_folder_is_filled(tmp_path):
    target = tmp_path / "out"
    target.mkdir()

    def fail() -> None:
        with new_folder(target) as folder:
            (folder / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.rglob("*")) == [target]
    with new_folder(target) as folder:
        (folder / "whole").write_text("")
    assert [path.name for path in target.iterdir()] == ["whole"]


@pytest.mark.parity
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, tokenizer):
    original = save_folder(qwen2_model(vocab_size=VOCAB), tmp_path / "in", tokenizer)
    values = tensors(original)
    values["model.norm.weight"][3] = 1e6
    save_file(values, original / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight overflows float16"):
        export(original, tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()
    assert export(original, tmp_path / "out", "bfloat16").exists()


def test_writer_rounds_to_nearest_and_refuses_what_is_missing_or_of_another_shape(tmp_path):
    value = np.asarray([[1.00390625, 1.01171875, -3.0]], np.float32)  # two ties between bfloat16 neighbours
    with SafetensorsWriter(tmp_path, {"a": (1, 3), "b": (0,)}, "bfloat16", 100) as writer:
        writer.write("b", np.zeros(0, np.float32))
        writer.write("a", value)
        with pytest.raises(ValueError, match="announced"):
            writer.write("a", value.T)
    np.testing.assert_array_equal(
        load_file(tmp_path / "model.safetensors")["a"], np.asarray([[1.0, 1.015625, -3.0]], ml_dtypes.bfloat16)
    )
    with (
        pytest.raises(ValueError, match="never written: a"),
        SafetensorsWriter(tmp_path, {"a": (2,)}, "float32", 9),
    ):
        pass
    with pytest.raises(UserError, match="--dtype"):
        SafetensorsWriter(tmp_path, {}, "int8", 9)


def test_sizes():
    assert [parse_size(text) for text in ("5GB", "1.5 mib", "10KB")] == [5 * 10**9, 3 * 2**19, 10**4]
    for text in ("5", "GB", "0GB", "-1MB"):
        with pytest.raises(UserError, match="--shard_size"):
            parse_size(text)


@pytest.mark.parity
def test_the_end_of_turn_ends_generation_beside_the_bases_own_ends(tmp_path, tokenizer):
    original = save_folder(llama3_model(vocab_size=VOCAB), tmp_path / "in", tokenizer)
    (original / "generation_config.json").write_text(json.dumps({"eos_token_id": [1], "temperature": 0.6}))
    out = export(original, tmp_path / "out")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [1, end], "temperature": 0.6}


@pytest.mark.parity
def test_permissions_follow_the_umask(tmp_path, tokenizer):
    original = save_folder(llama3_model(vocab_size=VOCAB), tmp_path / "in", tokenizer)
    out = export(original, tmp_path / "out")
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {
        path.name: "0o644" for path in out.iterdir()
    }
