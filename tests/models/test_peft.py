"""Adapters out to `peft` and back; what is no adapter of this base is said by name."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from smallr.core.errors import UserError
from smallr.models.loading import open_model
from smallr.models.lora import LoRA, merged, targets
from smallr.models.peft import read_adapter, write_adapter
from smallr.training.exporting import convert
from smallr.training.opening import load, loaded_params
from tests.data import toy_tokenizer
from tests.models.files import save_folder
from tests.models.helpers import llama3_model, qwen2_model

pytestmark = pytest.mark.parity

LORAS = {
    "all": LoRA(5, 10.0, dropout=0.1),
    "some, rsLoRA": LoRA(3, 6.0, rslora=True, target=r"attention\.(q|o)|down"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return save_folder(llama3_model(vocab_size=531), folder, toy_tokenizer.build())


def random_pairs(source, lora):
    """a and b of every target, from the shapes of the weights."""
    rng, state = np.random.default_rng(0), load(source)
    pairs = {}
    for path, row in targets(source.config, lora).items():
        shape = state[tuple(path.split("."))].shape
        cut = 1 + row.inputs
        pairs[path] = tuple(
            rng.normal(0, 0.15, size).astype(np.float32)
            for size in ((*shape[:cut], lora.rank), (shape[0], lora.rank, *shape[cut:]))
        )
    return pairs


def written(base, folder, lora, digest="d" * 64):
    source = open_model(str(base))
    pairs = random_pairs(source, lora)
    options = {"base": str(base), "digest": digest, "dtype": "float32", "card": ""}
    write_adapter(folder, source, lora, pairs.get, **options)
    return source, pairs


def peft_logits(base, adapter, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        plain = model(tokens).logits.numpy()
        return plain, peft.PeftModel.from_pretrained(model, adapter)(tokens).logits.numpy()


@pytest.mark.parametrize("name", list(LORAS))
def test_peft_computes_what_the_merged_export_computes(base, tmp_path, name):
    lora = LORAS[name]
    _, pairs = written(base, tmp_path / "adapter", lora, digest="")
    tokens = torch.arange(1, 41)[None]
    plain, theirs = peft_logits(base, tmp_path / "adapter", tokens)
    assert np.abs(theirs - plain).max() > 0.1
    # The digest of a base is written by runs; without it shapes and names decide.
    rewrite(tmp_path / "adapter", metadata={"format": "pt"})
    convert(str(tmp_path / "adapter"), tmp_path / "merged", dtype="float32", shard_size="5GB")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        ours = model(tokens).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    read = loaded_params(load(open_model(str(tmp_path / "merged"))))
    path = next(iter(pairs))
    weight = loaded_params(load(open_model(str(base))))(path)
    np.testing.assert_array_equal(read(path), merged(weight, *pairs[path], lora.scale))


@pytest.mark.parametrize("name", list(LORAS))
def test_what_is_written_is_read_back_bit_for_bit(base, tmp_path, name):
    lora = LORAS[name]
    source, pairs = written(base, tmp_path / "adapter", lora)
    stored, found = read_adapter(tmp_path / "adapter", source.config, "d" * 64)
    assert (stored.rank, stored.scale, stored.dropout) == (lora.rank, lora.scale, lora.dropout)
    assert found.keys() == pairs.keys() == targets(source.config, stored).keys()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "adapter").iterdir()}
    assert modes.keys() >= {"tokenizer.json", "tokenizer_config.json"}, "the base's tokenizer is not in the folder"
    assert set(modes.values()) == {0o644}
    for path, pair in pairs.items():
        for ours, theirs in zip(found[path], pair, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_an_adapter_that_peft_wrote_is_read(base, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    how = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], use_rslora=True)
    wrapped = peft.get_peft_model(model, how)
    torch.manual_seed(0)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    wrapped.save_pretrained(tmp_path / "theirs")
    tokens = torch.arange(1, 30)[None]
    with torch.no_grad():
        theirs = wrapped.eval()(tokens).logits.numpy()
    convert(str(tmp_path / "theirs"), tmp_path / "merged", dtype="float32", shard_size="5GB")
    with torch.no_grad():
        ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_bfloat16_adapters_are_read_as_they_are(base, tmp_path):
    source = open_model(str(base))
    pairs = random_pairs(source, LORAS["all"])
    options = {"base": str(base), "digest": "d", "dtype": "bfloat16", "card": ""}
    write_adapter(tmp_path / "adapter", source, LORAS["all"], pairs.get, **options)
    _, found = read_adapter(tmp_path / "adapter", source.config, "d")
    for path, pair in pairs.items():
        for ours, theirs in zip(found[path], pair, strict=True):
            np.testing.assert_array_equal(ours, theirs.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_an_adapter_without_a_base_is_refused(base, tmp_path):
    written(base, tmp_path / "adapter", LORAS["all"])
    rewrite(tmp_path / "adapter", base_model_name_or_path=None)
    with pytest.raises(UserError, match="has no base_model_name_or_path: set it to the model"):
        convert(str(tmp_path / "adapter"), tmp_path / "out", dtype="float32", shard_size="5GB")


def rewrite(folder, change=lambda tensors: None, metadata=None, **fields):
    """Changes the tensors or the configuration of an adapter folder."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(content | fields))


def drop_last_layer(tensors):
    del tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"]


def add_unknown(tensors):
    tensors["base_model.model.model.layers.0.self_attn.z_proj.lora_A.weight"] = np.zeros((5, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "fields", "words"),
    [
        (lambda tensors: None, {"use_dora": True}, "use_dora"),
        (lambda tensors: None, {"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        (lambda tensors: None, {"peft_type": "IA3"}, "IA3"),
        (lambda tensors: None, {"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        (drop_last_layer, {}, r"layers\.2\.self_attn\.q_proj\.lora_A"),
        (add_unknown, {}, "z_proj"),
        (lambda tensors: tensors.clear(), {}, "no tensor"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(base, tmp_path, change, fields, words):
    source, _ = written(base, tmp_path / "adapter", LORAS["all"])
    rewrite(tmp_path / "adapter", change, **fields)
    with pytest.raises(UserError, match=words):
        read_adapter(tmp_path / "adapter", source.config, "d" * 64)


def test_an_adapter_for_another_base_is_refused(base, tmp_path):
    source, _ = written(base, tmp_path / "adapter", LORAS["all"])
    with pytest.raises(UserError, match="trained on another base"):
        read_adapter(tmp_path / "adapter", source.config, "e" * 64)
    other = save_folder(qwen2_model(), tmp_path / "other")
    with pytest.raises(UserError, match=r"shape \(5, 60\), this base needs \(5, 48\)"):
        read_adapter(tmp_path / "adapter", open_model(str(other)).config, "d" * 64)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read_adapter(tmp_path / "other", source.config, "d" * 64)
