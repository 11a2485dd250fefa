"""From a run to transformers: logits, files, kills, damage."""

from __future__ import annotations

import json
import shutil
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.models.decoder import Decoder
from smallr.models.loading import open_model
from smallr.training.exporting import convert
from smallr.training.steplog import NonFiniteError
from tests.data import toy_tokenizer
from tests.models.families.checks import logits_of
from tests.models.helpers import param_at
from tests.runs import final_arrays, smoke, train

OPTIONS = {"dtype": "float32", "shard_size": "5GB"}
FEW_GRADIENTS = {"freeze": "embed|layers"}  # compile fast, where it does not matter what is learned


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(smoke("cogpo", **{"checkpoint.every": 2, "optimizer.learning_rate": 0.02}), workdir)
    return workdir


def our_logits(workdir, tokens) -> np.ndarray:
    decoder = nnx.eval_shape(lambda: Decoder(open_model("tiny-random").config, rngs=nnx.Rngs(0)))
    for name, value in final_arrays(workdir).items():
        if name.startswith("params/"):
            param_at(decoder, name.removeprefix("params/").replace("/", ".")).set_value(jnp.asarray(value))
    return np.asarray(logits_of(decoder, tokens))


@pytest.mark.parity
def test_a_run_gives_the_same_logits_in_transformers(run, tmp_path):
    out = tmp_path / "model"
    assert "step 4" in convert(str(run), out, **OPTIONS)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    tokens = np.random.default_rng(0).integers(0, 1280, (2, 50))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    ours = our_logits(run, tokens)
    assert np.ptp(ours) > 0.2, "the logits are all alike: the comparison would show nothing"
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "What is 12 + 30?"}]
    ours = open_model("tiny-random").tokenizer()
    assert tokenizer.apply_chat_template(chat, tokenize=False) == ours.apply_chat_template(chat, tokenize=False)
    assert tokenizer("x = 123\n").input_ids == ours("x = 123\n").input_ids
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    card = (out / "README.md").read_text()
    report = json.loads((run / "report.json").read_text())
    assert f"| margin | {report['before']['margin']:.4f} | {report['after']['margin']:.4f} |" in card
    assert "steps: 4" in card
    assert '"learning_rate": 0.02' in card


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_step_can_be_named(run, tmp_path):
    message = convert(str(run / "checkpoints" / "2"), tmp_path / "two", **OPTIONS)
    assert "step 2" in message
    convert(str(run), tmp_path / "four", **OPTIONS)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("two", "four")]
    assert weights[0] != weights[1]
    assert "before and after" not in (tmp_path / "two" / "README.md").read_text()  # the report is of step 4


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over_and_nothing_in_the_run_changes(run, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    data = [path for path in (workdir / "checkpoints" / "4" / "state").rglob("*") if path.is_file()]
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in workdir.rglob("*"))
    assert "step 2" in convert(str(workdir), tmp_path / "out", **OPTIONS)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in workdir.rglob("*")) == before
    with pytest.raises(UserError, match="damaged"):
        convert(str(workdir / "checkpoints" / "4"), tmp_path / "other", **OPTIONS)
    shutil.rmtree(workdir / "checkpoints" / "2")
    with pytest.raises(UserError, match="all 1 checkpoints are damaged"):
        convert(str(workdir), tmp_path / "other", **OPTIONS)
    assert not (tmp_path / "other").exists()


@pytest.mark.process
def test_killed_at_any_moment_leaves_no_folder_that_looks_whole(run, tmp_path, capsys, forks):
    target = tmp_path / "out"
    flags = ["convert", f"--from={run}", f"--to={target}", "--dtype=float32"]
    process = forks.start(["-m", "smallr", *flags])
    end = time.monotonic() + 120
    while not list(tmp_path.glob(".out-*/model.safetensors")):  # the weights are being written
        assert process.poll() is None, process.printed()
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists(), "the export was complete before it was killed"
    assert list(tmp_path.glob(".out-*"))
    assert main(flags) == 0
    assert (target / "config.json").exists()
    capsys.readouterr()
    assert main(flags) == 1
    error = capsys.readouterr().err
    assert "not an empty folder" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_weights_that_are_not_finite_pass_if_asked_for(tmp_path):
    """By the command line, and by the configuration of a run."""
    convert("tiny-random", tmp_path / "model", **OPTIONS)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"up_proj\.weight holds NaN .*--allow_nonfinite"):
        convert(str(tmp_path / "model"), tmp_path / "refused", **OPTIONS)
    assert not (tmp_path / "refused").exists()
    flags = [f"--from={tmp_path / 'model'}", f"--to={tmp_path / 'taken'}", "--dtype=float32", "--allow_nonfinite"]
    assert main(["convert", *flags]) == 0
    written = load_file(tmp_path / "taken" / "model.safetensors")
    assert sorted(written) == sorted(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)

    fields = {"model": str(tmp_path / "model"), "data.eval": "", "data.train_split": "train[:8]", **FEW_GRADIENTS}
    with pytest.raises(UserError, match=r"up_proj\.weight holds NaN"):
        train(smoke("sft", **fields), tmp_path / "run")
    with pytest.raises(NonFiniteError, match="not finite in rows"):
        train(smoke("sft", **fields, allow_nonfinite=True), tmp_path / "run")


@pytest.mark.slow
def test_another_tokenizer_is_used_and_goes_along(tmp_path):
    toy = toy_tokenizer.build()
    toy.save_pretrained(tmp_path / "tokenizer")
    fields = {"tokenizer": str(tmp_path / "tokenizer"), "data.eval": "", "data.train_split": "train[:4]", "steps": 1}
    train(smoke("sft", **fields, **FEW_GRADIENTS, **{"batch.row_length": 1024}), tmp_path / "run")
    convert(str(tmp_path / "run"), tmp_path / "out", **OPTIONS)
    out = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert out("a b <|im_end|>").input_ids == toy("a b <|im_end|>").input_ids
    assert out.chat_template == toy.chat_template
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == toy.eos_token_id
    with pytest.raises(UserError, match=r"config\.tokenizer: 'nowhere' is no folder here, and no hub id"):
        train(smoke("sft", **fields | {"tokenizer": "nowhere"}), tmp_path / "other")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: (path / "checkpoints").mkdir(parents=True), "no checkpoint yet"),
        (lambda path: None, "unknown model"),
    ],
)
def test_what_is_no_run_and_no_model_is_said_so(tmp_path, prepare, words):
    prepare(tmp_path / "thing")
    with pytest.raises(UserError, match=words):
        convert(str(tmp_path / "thing"), tmp_path / "out", **OPTIONS)
