"""Runs of LoRA and of partly frozen models: what changes, what is stored, what resumes, what is exported."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.loading import load_decoder, open_model
from smallr.training.exporting import convert
from smallr.training.opening import load
from smallr.training.policy import prepare_policy
from smallr.training.trainer import Trainer
from tests.models.families.checks import logits_of
from tests.runs import final_arrays, metrics, on_devices, smoke, train

STEPS = 4
# Rows that eight devices can share in two micro-batches, and a rate that does not depend on the number of steps: the first
# steps of `lora_run` are those of a shorter run, so that other runs are held against it and share its programs.
FIELDS = {
    "data.eval": "",
    "steps": STEPS,
    "eval_every": 0,
    "checkpoint.every": 1,
    "checkpoint.keep_last": STEPS,
    "batch.rows": 8,
    "batch.accumulation": 2,
    "batch.row_length": 384,
    "lora.dropout": 0.1,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
    "optimizer.eps": 1e-5,  # where gradients are smaller, their last bits do not become whole steps
}
OPTIONS = {"dtype": "float32", "shard_size": "5GB"}
# A cached reference comes from a forward program, which tests compile to other code than a step's (tests/compiling.py): sums
# of hundreds of nats may differ in their last bits. Compiled alike, the first loss is ln 2 to 2e-9.
LN_2 = 1e-5


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora")
    train(smoke("cogpo_lora", **FIELDS), workdir)
    return workdir


@pytest.mark.slow
def test_adapters_alone_are_trained_and_stored(lora_run):
    arrays = final_arrays(lora_run)
    held = [name for name in arrays if name.endswith(("/a", "/b"))]
    assert len(held) == 3 * 14  # parameters and both moments, of a and b of 7 projections
    rest = [name for name in arrays if name not in held]
    assert all(arrays[name].size <= 2 for name in rest), rest
    saved = lora_run / "checkpoints" / str(STEPS)
    size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    adapters = sum(arrays[name].nbytes for name in held)
    assert size < adapters + 200_000
    assert metrics(lora_run)[0]["loss"] == pytest.approx(np.log(2), abs=LN_2)
    assert all(np.abs(arrays[name]).max() > 0 for name in held if name.startswith("params"))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path, lora_run, capsys):
    """What a kill leaves: the checkpoint of step 2, and the log of steps after it (tests of resuming kill for real)."""
    shutil.copytree(lora_run, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > 2:
            shutil.rmtree(path)
    (tmp_path / "report.json").unlink()
    train(smoke("cogpo_lora", **FIELDS), tmp_path)
    assert f"resuming {tmp_path} at step 2" in capsys.readouterr().out
    expected, found = final_arrays(lora_run), final_arrays(tmp_path)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.process
def test_eight_devices_equal_one(tmp_path, lora_run, eight_devices):
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    eight_devices(on_devices("cogpo_lora", tmp_path, {**FIELDS, "steps": 3, "checkpoint.every": 3, **mesh}))
    ours, theirs = metrics(tmp_path), metrics(lora_run)[:3]
    for field in ("loss", "grad_norm"):
        values = [[line[field] for line in lines] for lines in (ours, theirs)]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5, err_msg=field)
    ours, theirs = (final_arrays(folder, step=3) for folder in (tmp_path, lora_run))
    # Adam divides by the size of a gradient, so its last bits are steps in B, which begins at zero.
    for name in (name for name in theirs if name.startswith("params")):
        assert np.linalg.norm(ours[name] - theirs[name]) < 5e-3 * np.linalg.norm(theirs[name]), name


LIVE = {**FIELDS, "objective.reference": "live", "steps": 3, "checkpoint.every": 3}


@pytest.mark.slow
def test_a_live_reference_is_the_base_and_costs_no_copy(tmp_path, lora_run):
    train(smoke("cogpo_lora", **LIVE), tmp_path)
    live, cached = ([line["loss"] for line in metrics(folder)[:3]] for folder in (tmp_path, lora_run))
    assert live[0] == pytest.approx(np.log(2), abs=2e-6)
    np.testing.assert_allclose(live, cached, rtol=5e-5)


@pytest.mark.slow
def test_a_live_reference_has_no_parameters_and_dropout_is_off_beside_the_step(tmp_path):
    """What the compiled step takes: the state, the base once, the batch; and what evaluation computes."""
    runs, sizes, values, losses = {}, {}, {}, {}
    for dropout in (0.0, 0.1):
        runs[dropout] = Trainer(smoke("cogpo_lora", **{**LIVE, "lora.dropout": dropout}), tmp_path / str(dropout))
    for dropout, trainer in runs.items():
        with trainer, jax.set_mesh(trainer.mesh):
            trainer.prepare()
            batch = next(trainer.training.batches(trainer.mesh, 0, 1))
            assert not jax.tree.leaves(trainer.reference.params)
            frozen = trainer.partition.frozen
            held = sum(x.nbytes for x in jax.tree.leaves((trainer.state, frozen, batch)))
            taken = trainer.program.memory_analysis().argument_size_in_bytes
            base = sum(x.nbytes for x in jax.tree.leaves(frozen))
            # What of a batch the objective does not use is no argument of the program.
            assert held - 1000 < taken < held + 0.05 * base, "the step takes more than the state, one base and a batch"
            sizes[dropout] = taken
            assert not [path for path, _ in nnx.to_flat_state(trainer.params) if path[-1] not in ("a", "b")]
            moved = jax.tree.map(lambda x: x + 0.05, trainer.params)
            values[dropout] = trainer.evaluation(moved, batch)
            trainer.state = dataclasses.replace(trainer.state, params=moved)
            losses[dropout] = float(trainer.take(batch)[0]["loss"])
    assert sizes[0.0] == sizes[0.1]
    for name, value in values[0.0].items():
        np.testing.assert_array_equal(value, values[0.1][name], err_msg=name)
    plain = np.mean(np.asarray(values[0.0]["loss"])[np.asarray(values[0.0]["example"]) >= 0])
    assert losses[0.0] == pytest.approx(plain, rel=1e-5)
    assert abs(losses[0.1] - losses[0.0]) > 1e-3, "the step did not drop"


@pytest.mark.parity
def test_training_from_an_adapter_of_peft_computes_what_peft_computes(tmp_path):
    import peft  # takes seconds, which `make test-fast` need not wait

    """Not merged: the low-rank products beside the base's."""
    convert("tiny-random", tmp_path / "base", **OPTIONS)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    how = peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "o_proj", "up_proj"], use_rslora=True)
    model = peft.get_peft_model(base, how)
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    tokens = np.random.default_rng(0).integers(0, 1280, (2, 40))
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(tokens)).logits.numpy()
        with model.disable_adapter():
            plain = model(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(expected - plain).max() > 0.1
    fields = {"lora.adapter": str(tmp_path / "adapter"), "lora.rslora": True, "lora.target": "(q|o|up)$"}
    mesh = make_mesh(1, 1, 1)
    trained = prepare_policy(load_decoder(open_model("tiny-random"), mesh), smoke("cogpo_lora", **fields), mesh)
    for decoder, want in (
        (trained.policy.decoder(trained.params, trained.frozen), expected),
        (trained.policy.base_decoder(trained.frozen), plain),
    ):
        np.testing.assert_allclose(logits_of(decoder, tokens), want, atol=1e-5)


@pytest.mark.parity
def test_merged_export_and_peft_agree_and_training_goes_on_from_the_adapter(tmp_path, lora_run):
    import peft

    convert(str(lora_run), tmp_path / "merged", **OPTIONS)
    with pytest.raises(UserError, match=r"PEFT cannot load the adapters' base tiny-random.* add --base=FOLDER"):
        convert(str(lora_run), tmp_path / "adapter", adapter_only=True, **OPTIONS)
    convert(str(lora_run), tmp_path / "adapter", adapter_only=True, base=str(tmp_path / "base"), **OPTIONS)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 1280, (2, 40)))
    with torch.no_grad():
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits.numpy()
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        plain = base(tokens).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(tokens).logits.numpy()
    assert np.abs(adapted - plain).max() > 1e-3
    np.testing.assert_allclose(merged, adapted, atol=1e-5)
    assert "library_name: peft" in (tmp_path / "adapter" / "README.md").read_text()
    # By what stands in the folder alone: the base's name, the tokenizer and its template.
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        np.testing.assert_array_equal(alone(tokens).logits.numpy(), adapted)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template

    again = {**FIELDS, "lora.adapter": str(tmp_path / "adapter"), "steps": 1}
    train(smoke("cogpo_lora", **again), tmp_path / "again")
    assert abs(metrics(tmp_path / "again")[0]["loss"] - np.log(2)) > 1e-4, "the reference has the adapter too"
    with pytest.raises(UserError, match="rank 16"):
        train(smoke("cogpo_lora", **again, **{"lora.rank": 8}), tmp_path / "other")
    with pytest.raises(UserError, match=r"not a run with config\.lora"):
        convert("tiny-random", tmp_path / "x", adapter_only=True, **OPTIONS)


FROZEN = r"embed|layers\.attention\."


@pytest.fixture(scope="module")
def frozen_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("frozen")
    changes = {"freeze": FROZEN, "data.eval": "", "steps": 2, "optimizer.learning_rate": 0.01}
    train(smoke("cogpo", **changes), workdir)
    return workdir


@pytest.mark.slow
def test_frozen_parameters_do_not_change_and_have_no_state(tmp_path, frozen_run):
    arrays = final_arrays(frozen_run)
    assert not [name for name in arrays if "embed" in name or "layers/attention/" in name]
    assert {name for name in arrays if name.startswith("params/")} == {
        "params/final_norm/scale",
        *(f"params/layers/{name}/scale" for name in ("attention_norm", "mlp_norm")),
        *(f"params/layers/mlp/{name}" for name in ("down", "gate", "up")),
    }
    convert(str(frozen_run), tmp_path / "out", **OPTIONS)
    before, after = load(open_model("tiny-random")), load(open_model(str(tmp_path / "out")))
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        same = np.array_equal(leaf.get_value(), after[path].get_value())
        assert same == (path[0] == "embed" or path[1] == "attention"), path


@pytest.mark.slow
def test_frozen_parameters_are_checked_on_resuming_and_on_export(tmp_path, frozen_run, monkeypatch):
    monkeypatch.setattr("smallr.models.loading.RANDOM_SEED", 1)
    changes = {"freeze": FROZEN, "data.eval": "", "steps": 3, "optimizer.learning_rate": 0.01}
    changes["optimizer.on_extend"] = "rewarm"
    with pytest.raises(UserError, match="model tiny-random has changed"):
        train(smoke("cogpo", **changes), frozen_run)
    with pytest.raises(UserError, match="is not the one"):
        convert(str(frozen_run), tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        ("cogpo", {"freeze": "attn"}, r"config\.freeze: 'attn' is found in none of .*layers\.attention\.q"),
        ("cogpo", {"freeze": "."}, "nothing is left"),
        ("cogpo", {"freeze": "("}, "no regular expression"),
        ("cogpo_lora", {"freeze": "embed"}, "leave it empty"),
        ("cogpo_lora", {"lora.target": "attn"}, r"config\.lora\.target"),
        ("cogpo_lora", {"lora.adapter": "nowhere"}, r"adapter_config\.json"),
    ],
)
def test_bad_fields_are_named(config, changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(smoke(config, **changes, **{"data.eval": "", "data.train_split": "train[:8]"}), tmp_path)


@pytest.mark.slow
def test_resuming_with_another_rank_stops(lora_run):
    with pytest.raises(UserError, match=r"lora\.rank"):
        train(smoke("cogpo_lora", **FIELDS, **{"lora.rank": 8}), lora_run)


@pytest.mark.parity
def test_a_quantised_base_is_what_is_trained_on_and_what_is_exported(tmp_path):
    config = smoke("cogpo_qlora", **{"data.eval": "", "steps": 2, "optimizer.learning_rate": 0.01})
    train(config, tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(np.log(2), abs=LN_2)
    convert(str(tmp_path / "run"), tmp_path / "out", **OPTIONS)
    mesh = make_mesh(1, 1, 1)
    trained = prepare_policy(load_decoder(open_model("tiny-random"), mesh), config, mesh)
    saved = final_arrays(tmp_path / "run")
    params = nnx.from_flat_state(
        [
            (path, leaf.replace(jnp.asarray(saved["params/" + "/".join(path)])))
            for path, leaf in nnx.to_flat_state(trained.params)
        ]
    )
    tokens = np.random.default_rng(0).integers(0, 1280, (2, 40))
    ours = logits_of(trained.policy.decoder(params, trained.frozen), tokens)
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
