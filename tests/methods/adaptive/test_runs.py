"""Both configs from training to use: what is trained, stored, resumed, exported, opened and refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from safetensors import safe_open
from safetensors.numpy import save_file

from smallr.cli import generate
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from smallr.methods.adaptive import labels
from smallr.methods.adaptive.opening import open_adaptive, open_student
from smallr.methods.adaptive.stored import export
from smallr.models.loading import open_model
from smallr.training.exporting import convert
from smallr.training.opening import load
from smallr.training.rows import Part, SplitRows
from smallr.training.saved import find_run
from tests.integration.test_runs import Recorder, leaves
from tests.runs import final_arrays, metrics, smoke, train

pytestmark = pytest.mark.slow

QUESTIONS = ["What is 2 and 3?", "Tom has 4 apples and buys 7 more. How many apples does he have?", "Why?"]
FEW = {"data.train_split": "train[:8]", "data.eval_split": "test[:4]", "soft.length": 5, "eval_every": 0}


@pytest.fixture(scope="module")
def prompts_run(tmp_path_factory):
    """A run, of which every field of the config was read."""
    workdir, seen = tmp_path_factory.mktemp("prompts"), set()
    config = smoke("adaptive.prompts", **FEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smallr.training.resume.to_plain", lambda config: config._node.to_dict())
        report = train(Recorder(config, seen), workdir)
    assert leaves(config) == seen, "fields that nothing reads"
    return workdir, report


@pytest.fixture(scope="module")
def router_run(tmp_path_factory):
    """A run on six rows that the student labels first; what it left in the cache, and its labeller."""
    folder = tmp_path_factory.mktemp("router")
    rows = [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(6)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = {"data.train": str(folder / "rows.jsonl"), "data.train_split": "train", "data.eval": "", "soft.length": 5}
    config = smoke("adaptive.router", **changes, **{"optimizer.learning_rate": 0.1, "steps": 6, "checkpoint.every": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLR_CACHE", str(folder / "cache"))
        train(config, folder / "run")
        (cached,) = (folder / "cache" / "labels").iterdir()
    return SimpleNamespace(workdir=folder / "run", config=config, rows=rows, cached=cached)


def test_only_the_soft_prompts_are_trained_and_stored(prompts_run):
    workdir, report = prompts_run
    assert report["after"]["loss"] < report["before"]["loss"]
    arrays = final_arrays(workdir)
    big = {name: value.shape for name, value in arrays.items() if value.size > 2}
    assert set(big.values()) == {(10, 64)}
    assert len(big) == 3  # the vectors and both moments
    heldout = metrics(workdir, "eval")[-1]  # a step may have examples of one order alone
    for order in ("answer_first", "rationale_first"):
        for role in ("answer", "rationale"):
            assert heldout[f"nll_{role}/{order}"] > 0


def test_mode_prompts_from_run_and_export_decide_alike(prompts_run, tmp_path, monkeypatch):
    workdir, _ = prompts_run
    export(find_run(workdir), tmp_path / "module", "float32")
    assert sorted(path.name for path in (tmp_path / "module").iterdir()) == ["adaptive.json", "answer", "think"]
    stored = safe_open(str(tmp_path / "module" / "think" / "adapter_model.safetensors"), "numpy")
    np.testing.assert_array_equal(
        stored.get_tensor("prompt_embeddings"), final_arrays(workdir)["params/soft/vectors"][5:]
    )
    module = open_adaptive(str(tmp_path / "module"), decode_slots=3, max_length=128)
    module.max_tokens = 4
    decided = module.decide(QUESTIONS)
    assert [answer.mode for answer in decided.answers] == list(decided.modes)
    assert all(0 < tokens <= 8 for tokens in decided.tokens)
    with pytest.raises(UserError, match="soft prompts, which cannot be merged"):
        convert(str(workdir), tmp_path / "merged", dtype="float32", shard_size="5GB")
    with pytest.raises(UserError, match="generate --adaptive"):
        open_student(str(workdir))


def test_rows_are_labelled_once_by_the_student_and_the_router_learns_them(router_run, monkeypatch):
    found = load_from_disk(str(router_run.cached))
    assert found["question"] == [row["question"] for row in router_run.rows]
    gain = np.asarray(found["nll_answer"]) - np.asarray(found["nll_think"])
    assert np.all(np.isfinite(gain) & (gain != 0))
    assert found["label"] == (gain > 0).astype(int).tolist()
    lines = metrics(router_run.workdir)
    assert lines[0]["second_label_share"] == pytest.approx(np.mean(found["label"]))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.002
    monkeypatch.setenv("SMALLR_CACHE", str(router_run.cached.parents[1]))
    monkeypatch.setattr(
        "smallr.methods.adaptive.labels.label_rows", lambda *args, **options: pytest.fail("labelled again")
    )
    monkeypatch.setattr(labels, "_opened", lambda *_: pytest.fail("the student is loaded for nothing"))
    again, heldout = labels.labelled_rows(router_run.config)
    assert again["label"] == found["label"]
    assert heldout is None
    given = Dataset.from_list([{"question": "?", "label": 1}])
    monkeypatch.setattr(labels, "read_rows", lambda *_: SplitRows(Part("mine", "train"), given, 1))
    assert labels.labelled_rows(router_run.config)[0] is given


def test_generate_says_which_mode_it_took(router_run, tmp_path):
    export(find_run(router_run.workdir), tmp_path / "module", "float32")
    stored = json.loads((tmp_path / "module" / "adaptive.json").read_text())
    tokenizer = open_model("tiny-random").tokenizer()
    assert stored["choice_ids"] == [tokenizer(text)["input_ids"][0] for text in (" answer", " think")]
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS))
    parser = Parser("generate", "")
    generate.flags(parser)
    files = [f"--adaptive={tmp_path}/module", f"--prompts={tmp_path}/questions.txt", f"--out={tmp_path}/out.jsonl"]
    given = [*files, "--max_length=128", "--decode_slots=3", "--max_tokens=4"]
    generate.run(parser.parse(given))
    with pytest.raises(UserError, match="--top_k has no effect"):
        generate.run(parser.parse([*given, "--top_k=3"]))
    lines = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [line["question"] for line in lines] == QUESTIONS
    assert [line["mode"] for line in lines] == ["think" if line["score"] > 0 else "answer" for line in lines]
    assert all(line["tokens"] == 4 and not line["complete"] for line in lines)


def test_a_module_of_another_model_is_refused(router_run, tmp_path):
    export(find_run(router_run.workdir), tmp_path / "module", "float32")
    path = tmp_path / "module" / "adapter_model.safetensors"
    with safe_open(str(path), "numpy") as file:
        tensors, metadata = {"prompt_embeddings": file.get_tensor("prompt_embeddings")}, file.metadata()
    save_file(tensors, path, metadata=metadata | {"base_digest": "f" * 64})
    with pytest.raises(UserError, match=r"trained on another model .*tiny-random, digest ffffffffffff"):
        open_adaptive(str(tmp_path / "module"))
    (tmp_path / "module" / "adaptive.json").write_text("{}")
    with pytest.raises(UserError, match=r"adaptive.json cannot be read"):
        open_adaptive(str(tmp_path / "module"))
    with pytest.raises(UserError, match=r"is .* an adaptive module"):
        open_adaptive(str(tmp_path))


WRONG = [
    ({"freeze": "embed"}, "leave out config.freeze"),
    ({"soft.length": 0}, "must be at least 1"),
    ({"benchmark.name": "gsm8k"}, "would measure the frozen model"),
    ({"soft.length": 600}, "longer than 512 tokens"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_set_ups_that_make_no_sense(changes, message, tmp_path):
    config = smoke("adaptive.prompts", **(FEW | changes))
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)


def test_the_base_is_the_model_as_it_was(prompts_run):
    """The digest of a checkpoint's frozen part is that of the model's own parameters."""
    from flax import nnx

    from smallr.training.digest import tree_digest

    state = load(open_model("tiny-random"))
    expected = tree_digest(nnx.from_flat_state(list(state.items())))
    assert find_run(prompts_run[0]).checkpoint.metadata["frozen"] == expected
