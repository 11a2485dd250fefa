"""Damaged and malformed model files: each is one `UserError`, or is read; nothing hangs or fails otherwise."""

import json
import os
import random
import shutil
import time

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from smallr.core.errors import UserError
from smallr.models.chat_template import check_template
from smallr.models.config import DecoderConfig
from smallr.models.gguf import GGUFFile
from smallr.models.gguf_tokenizer import gguf_tokenizer
from smallr.models.hf import folder_tokenizer, read_config, read_generation_config
from smallr.models.peft import base_of, read_adapter_config
from smallr.models.safetensors import INDEX, SafetensorsFolder
from smallr.models.scratch import train_tokenizer
from smallr.sampling.prompts import prompt_ids
from smallr.sampling.requests import Request

LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e5, "factor": 2.0, "original_max_position_embeddings": 32},
    "layer_types": ["full_attention", "full_attention"],
    "eos_token_id": [1, 2],
}
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "base_model_name_or_path": "m"}
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message.role + '] ' }}{{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [None],
    {},
    {"a": 1},
    [[]],
    "9" * 999,
)
COUNT = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model folder with two weight files."""
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(["a small text"], 300).save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    (folder / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": 0}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "pad_token_id": 0}))
    names = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
    for tensor, name in names.items():
        save_file({tensor: np.arange(12, dtype=np.float32).reshape(3, 4)}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 96}, "weight_map": names}))
    return folder


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A GGUF file with metadata, a tokenizer and two tensors."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "attention.head_count", "attention.head_count_kv"):
        writer.add_uint32(f"llama.{key}", 1)
    for key in ("context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|end|>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_folder_config(folder):
    DecoderConfig.from_hf(read_config(folder))


def read_weights(folder):
    weights = SafetensorsFolder(folder)
    for name, shape in weights.shapes().items():
        weights.read(name, tuple(slice(None) for _ in shape))


def read_older_tokenizer(folder):
    """Files that transformers reads beside tokenizer.json, and then writes with."""
    tokenizer = folder_tokenizer(folder)
    assert tokenizer.decode(tokenizer("a text")["input_ids"]) == "a text"


def read_adapter_files(folder):
    content = read_adapter_config(folder)
    assert 0 < content["r"] < 2**20
    assert float(content["lora_alpha"]) > 0
    assert 0 <= float(content.get("lora_dropout") or 0) <= 1
    base_of(folder)


READERS = {
    "special_tokens_map.json": read_older_tokenizer,
    "added_tokens.json": read_older_tokenizer,
    "adapter_config.json": read_adapter_files,
    "config.json": read_folder_config,
    "generation_config.json": read_generation_config,
    "tokenizer.json": folder_tokenizer,
    "tokenizer_config.json": folder_tokenizer,
    INDEX: read_weights,
    "model-1.safetensors": read_weights,
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Flipped, zeroed, cut, doubled or random bytes, or lengths that are huge."""
    place, length = rng.randrange(len(content)), rng.randint(1, 16)
    kind = rng.randrange(6)
    if kind == 0:
        return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    middle = [bytes(length), content[place : place + length] * 2, rng.randbytes(length), b"\xff" * 8][kind - 2]
    return content[:place] + middle + content[place + length :]


def mutated_json(value, rng: random.Random):
    """The value with one of its parts replaced or removed."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        changed = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = mutated_json(value[key], rng)
        return changed
    return rng.choice(VALUES)


def survives(read, what) -> bool:
    """Whether a file is read; a refusal is a `UserError` of one line, soon."""
    start = time.monotonic()
    refusal = ""
    try:
        read(what)
    except UserError as error:
        refusal = str(error)
        assert refusal
        assert "\n" not in refusal
    assert time.monotonic() - start < 10
    return not refusal


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_of_a_folder(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (copy / name).read_bytes()
    assert survives(READERS[name], copy)
    rng, refused = random.Random(name), 0
    for number in range(COUNT):
        if name.endswith(".json") and number % 2:
            changed = json.dumps(mutated_json(json.loads(content), rng)).encode()
        else:
            changed = mutated(content, rng)
        (copy / name).write_bytes(changed)
        refused += not survives(READERS[name], copy)
    assert refused > COUNT / 10


def test_mutated_chat_templates(folder, tmp_path, monkeypatch):
    """Those that are tried in a process of their own, one in thirty here, and those that are rendered in this one."""
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    copy = shutil.copytree(folder, tmp_path / "copy")
    request = Request(messages=({"role": "user", "content": "a text"},))

    def read(folder, *, tried):
        tokenizer = folder_tokenizer(folder)
        if tried:
            check_template(tokenizer.chat_template, "model")
        prompt_ids(request, tokenizer, 300)

    read(copy, tried=True)  # without the clock: it imports what renders templates
    rng, refused = random.Random(0), 0
    for number in range(COUNT):
        (copy / "chat_template.jinja").write_bytes(mutated(TEMPLATE.encode(), rng))
        refused += not survives(lambda folder, n=number: read(folder, tried=n % 30 == 0), copy)
    assert refused > COUNT / 10


def test_mutated_gguf_files(gguf_file, tmp_path):
    content, path = gguf_file.read_bytes(), tmp_path / "model.gguf"
    read = lambda path: gguf_tokenizer(GGUFFile(path))  # noqa: E731
    assert survives(read, gguf_file)
    rng, refused = random.Random(0), 0
    for _ in range(COUNT):
        path.write_bytes(mutated(content[:1200], rng) + content[1200:])
        refused += not survives(read, path)
    assert refused > COUNT / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": 0}, "rms_norm_eps: 0 is not a number above 0"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta: 0 is not a number above 1"),
        ({"num_hidden_layers": 1001, "layer_types": None}, "num_hidden_layers: 1001 is not a whole number"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers: '2' is not a whole number"),
        ({"hidden_size": True}, "hidden_size: True is not a whole number"),
        ({"num_attention_heads": 3}, "3 attention heads do not divide the hidden size 8"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
        ({"eos_token_id": "x"}, "eos_token_id: 'x' is not a whole number"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "2"}}, "rope_parameters: factor: '2' is not a number"),
    ],
)
def test_fields_are_named(change, message):
    with pytest.raises(UserError, match=message):
        DecoderConfig.from_hf(LLAMA | change)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map: null is not an object"),
        ({"weight_map": []}, "weight_map"),
        ({"weight_map": {"a.weight": "../outside.safetensors"}}, "is not the name of a file in this folder"),
        ({"weight_map": {"a.weight": "/etc/passwd"}}, "is not the name of a file in this folder"),
        ({"weight_map": {"a.weight": 3}}, "3 is not the name of a file in this folder"),
        ({"weight_map": {"a.weight": "link.safetensors"}}, "outside of the model's folder"),
    ],
)
def test_weights_stay_in_their_folder(folder, tmp_path, index, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.copy(copy / "model-1.safetensors", tmp_path / "outside.safetensors")
    os.symlink(tmp_path / "outside.safetensors", copy / "link.safetensors")
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        SafetensorsFolder(copy)


def test_the_hubs_links_are_followed(folder, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(folder / "model-1.safetensors", blobs / "digest")
    os.symlink("../../blobs/digest", snapshot / "model.safetensors")
    assert SafetensorsFolder(snapshot).shapes() == {"a.weight": (3, 4)}


def test_a_key_twice_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 3, "vocab_size": 4}')
    with pytest.raises(UserError, match="the key 'vocab_size' stands there twice"):
        read_config(tmp_path)


def test_deep_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not valid JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for x", "is not valid"),
        ("{{ 'a' * 10**11 }}", "needs over 1024 MB"),
        ("{% for i in range(99999) %}" + "a" * 99 + "{% endfor %}", "writes over 1000000 characters"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
    ],
)
def test_templates_are_bounded(template, message, monkeypatch, tmp_path):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path))
    monkeypatch.setattr("smallr.models.chat_template.SECONDS", 1)
    with pytest.raises(UserError, match=message):
        check_template(template, "model")


def test_templates_may_refuse_conversations(monkeypatch, tmp_path):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path))
    check_template("{{ raise_exception('no') }}", "model")
    check_template("{% generation %}{{ messages[0].content }}{% endgeneration %}", "model")
