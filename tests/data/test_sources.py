"""Every kind of source gives the same rows; what is wrong with one is said with its place."""

from __future__ import annotations

import gzip
import json
import sys

import datasets
import pytest

from smallr.data import builtin, specs
from smallr.data.errors import DataError
from smallr.data.formats import recognise
from smallr.data.sources import load_rows

ROWS = [
    {"question": "2 + 2?", "answer": "4", "rationale": "two and two"},
    {"question": "Où?", "answer": "None", "rationale": "“ici”\n"},
    {"question": "agent?", "answer": "007", "rationale": "1e3"},
]


@pytest.fixture(autouse=True)
def _no_progress_bars(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def lines(path, rows=ROWS):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8").write(text)
    return path


def write(folder, name):
    path = folder / name
    if ".jsonl" in name:
        return lines(path)
    if name == "rows.json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif name == "rows.json.gz":
        with gzip.open(path, "wt") as file:
            file.write(json.dumps(ROWS))
    elif name == "rows.parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    elif name == "rows.csv":
        datasets.Dataset.from_list(ROWS).to_csv(path)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz", "rows.parquet", "rows.csv", "folder"]
)
def test_files_and_folders(tmp_path, name):
    path = write(tmp_path, name)
    assert load_rows(str(path)).to_list() == ROWS
    forced = "disk" if name == "folder" else "files"
    assert load_rows(f"{forced}:{path}", "train[1:]").to_list() == ROWS[1:]


def test_glob_reads_files_in_order(tmp_path):
    lines(tmp_path / "b.jsonl", ROWS[2:])
    lines(tmp_path / "a.jsonl", ROWS[:2])
    (tmp_path / "notes.txt").write_text("not a row")
    assert load_rows(f"{tmp_path}/*.jsonl").to_list() == ROWS
    with pytest.raises(DataError, match=r"expected files of one format .* found a\.jsonl, b\.jsonl, notes\.txt"):
        load_rows(f"{tmp_path}/*")


def test_a_changed_file_is_read_again(tmp_path):
    path = lines(tmp_path / "rows.jsonl", ROWS[:1])
    assert len(load_rows(str(path))) == 1
    assert len(load_rows(str(lines(path, ROWS)))) == 3


def test_missing_files_name_what_is_there(tmp_path):
    lines(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file; .* holds train\.jsonl; did you mean 'train"):
        load_rows(f"{tmp_path}/trian.jsonl")
    with pytest.raises(DataError, match=r"\*\.parquet: no file matches; .* holds train\.jsonl"):
        load_rows(f"{tmp_path}/*.parquet")
    with pytest.raises(DataError, match="/none: no such folder"):
        load_rows(f"disk:{tmp_path}/none")
    with pytest.raises(DataError, match=r"not a folder that datasets' save_to_disk has written.*\*\.jsonl"):
        load_rows(str(tmp_path))
    with pytest.raises(DataError, match=r"no such folder or file, and not a hub id .* builtin:arithmetic/preference"):
        load_rows(f"{tmp_path}/none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n\n{"a": 2\n{"a": 3}\n', r"line 3: not valid JSON"),
        ('{"a": 1}\nnull\n', r"line 2: a row must be an object"),
        ('[{"a": 1},\n {"a": 2},\n {"a" 3}]', r"line 3: not valid JSON"),
        ('{"a": 1}\n{"a": "\udcff"}\n', r"line 2: not UTF-8 \(byte 0xff"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_invalid_json_names_file_and_line(tmp_path, text, message, suffix):
    path = tmp_path / f"bad{suffix}"
    data = text.encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    lines(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=rf"bad{suffix}, {message}"):
        load_rows(f"{tmp_path}/*")


def test_unreadable_files(tmp_path):
    whole = gzip.compress(json.dumps(ROWS[0]).encode() * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "rows.parquet").write_bytes(b"not parquet")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    write(tmp_path, "folder")
    next((tmp_path / "folder").glob("*.arrow")).write_bytes(b"not arrow")
    for name in ("cut.jsonl.gz", "rows.parquet", "empty.jsonl", "folder"):
        with pytest.raises(DataError, match=name):
            load_rows(str(tmp_path / name))


def test_splits(tmp_path):
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS * 10), test=datasets.Dataset.from_list(ROWS[:1]))
    both.save_to_disk(tmp_path / "both")
    spec = str(tmp_path / "both")
    assert load_rows(spec, "test").to_list() == ROWS[:1]
    assert len(load_rows(spec, "train[:90%]")) == 27
    assert load_rows(spec, "train[-3:]").to_list() == ROWS
    assert load_rows(spec, "train[90%:]").to_list() == ROWS
    with pytest.raises(DataError, match="no split 'tset'; there is train, test; did you mean 'test'"):
        load_rows(spec, "tset")
    with pytest.raises(DataError, match="no split 'test'; there is train"):
        load_rows(str(lines(tmp_path / "rows.jsonl")), "test")
    with pytest.raises(DataError, match=r"split 'train\[5\]': expected a name, or a part"):
        load_rows(spec, "train[5]")
    with pytest.raises(DataError, match=r"split 'train\[30:\]' holds no rows"):
        load_rows(spec, "train[30:]")


def test_column_mapping(tmp_path):
    spec = str(lines(tmp_path / "rows.jsonl"))
    assert load_rows(spec, columns={"prompt": "question"}).column_names == ["answer", "rationale", "prompt"]
    swapped = load_rows(spec, columns={"answer": "rationale", "rationale": "answer"})
    assert swapped[0] == {"question": "2 + 2?", "answer": "two and two", "rationale": "4"}
    replaced = load_rows(spec, columns={"answer": "rationale"})
    assert replaced[0] == {"question": "2 + 2?", "answer": "two and two"}
    twice = load_rows(spec, columns={"prompt": "question", "question": "question"})
    assert twice[0] == {"prompt": "2 + 2?", "question": "2 + 2?", "answer": "4", "rationale": "two and two"}


def test_column_mapping_mistakes(tmp_path):
    spec = str(lines(tmp_path / "rows.jsonl"))
    with pytest.raises(
        DataError, match=r"no column 'quesion' to use as 'prompt'; present question, answer, rationale; did you mean 'q"
    ):
        load_rows(spec, columns={"prompt": "quesion"})
    with pytest.raises(DataError, match=r"'promt' must be one of our columns: .* did you mean 'prompt'"):
        load_rows(spec, columns={"promt": "question"})


@pytest.mark.parametrize(("offline", "why"), [(True, "HF_HUB_OFFLINE is set"), (False, "is there a network?")])
def test_an_unreachable_hub_names_the_choices(monkeypatch, offline, why):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    if not offline:  # the real thing retries for half a minute

        def unreachable(*args, **kwargs):
            raise ConnectionError("Couldn't reach 'org/none-such' on the Hub (LocalEntryNotFoundError)")

        monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as error:
        load_rows("org/none-such")
    assert why in str(error.value)
    for choice in ("save_to_disk", "jsonl", "tfds:", "builtin:arithmetic/preference"):
        assert choice in str(error.value)


def test_hub_ids_and_errors(monkeypatch):
    seen = []

    def load_dataset(*args, **kwargs):
        seen.append((args, kwargs))
        raise next(errors)

    errors = iter(
        [
            RuntimeError("Dataset scripts are no longer supported, but found set.py"),
            ValueError("Unknown split \"tset\". Should be one of ['train', 'test']."),
            datasets.exceptions.DatasetNotFoundError("Dataset 'squad' doesn't exist on the Hub"),
        ]
    )
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"found set\.py.* smallr runs no code of a data set"):
        load_rows("org/name:main-1.0")
    with pytest.raises(DataError, match=r"org/name: Unknown split .* \['train', 'test'\]"):
        load_rows("org/name", "tset")
    with pytest.raises(DataError, match="squad: the hub has no such data set"):
        load_rows("hub:squad")
    # Nothing but names goes to the hub: above all no trust_remote_code.
    assert seen == [
        (("org/name", "main-1.0"), {"split": "train"}),
        (("org/name", None), {"split": "tset"}),
        (("squad", None), {"split": "train"}),
    ]
    with pytest.raises(DataError, match="expected org/name or org/name:config"):
        load_rows("hub:what is this")


def test_builtin(tmp_path, monkeypatch):
    built = builtin.build(tmp_path, train_questions=20, test_questions=10)
    monkeypatch.setattr(builtin, "ensure_built", lambda: tmp_path)
    for kind in ("preference", "rationale"):
        rows = load_rows(f"builtin:arithmetic/{kind}", "test")
        assert rows.to_list() == built[kind]["test"].to_list()
        assert recognise(kind, rows.column_names, "builtin")
    assert load_rows("builtin:arithmetic/teacher", "test").to_list() == built["teacher"]["test"].to_list()
    with pytest.raises(
        DataError, match=r"builtin:arithmetic/rational must be one of: .* did you mean 'arithmetic/rationale'"
    ):
        load_rows("builtin:arithmetic/rational")


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A real TFDS data set in array_record files, written and read without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra tfds")
    import numpy as np

    class SmallrToyRows(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # a class of a test has no package to look for checksums in

        def _info(self):
            chat = tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})
            features = tfds.features.FeaturesDict({"question": tfds.features.Text(), "messages": chat, "n": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

        def _generate_examples(self, count):
            for i in range(count):
                chat = [{"role": "user", "content": f"u{i}"}, {"role": "assistant", "content": "“a”"}]
                yield i, {"question": f"é{i}", "messages": chat, "n": i}

    folder = tmp_path_factory.mktemp("tfds")
    SmallrToyRows(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds(tfds_dir, monkeypatch):
    import tensorflow_datasets as tfds

    from smallr.data.drops import DropReport
    from smallr.data.rows import parse_rows

    # TFDS reads the variable TFDS_DATA_DIR once, when it is imported.
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tfds_dir))
    rows = load_rows("tfds:smallr_toy_rows:1.0.0", "train", {"prompt": "question"})
    assert sorted(row["prompt"] for row in rows) == ["é0", "é1", "é2"]
    assert sorted(row["n"] for row in rows) == [0, 1, 2]
    (parsed,) = parse_rows(load_rows("tfds:smallr_toy_rows", "test"), "sft", DropReport("x", 9))
    assert parsed.prompt == ({"role": "user", "content": "u0"},)
    assert parsed.completions == (({"role": "assistant", "content": "“a”"},),)
    with pytest.raises(
        DataError, match=r"no split 'valid'; there is train, test|no split 'valid'; there is test, train"
    ):
        load_rows("tfds:smallr_toy_rows", "valid")
    with pytest.raises(DataError, match="tfds:math_qaa: TFDS has no such data set; did you mean 'math_qa'"):
        load_rows("tfds:math_qaa")
    assert "tensorflow" not in sys.modules


def test_tfds_that_needs_tensorflow_says_so(monkeypatch):
    """Stands for a data set that is not prepared yet: TFDS then imports TensorFlow, which is not installed."""
    import tensorflow_datasets as tfds

    def data_source(name):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "data_source", data_source)
    with pytest.raises(DataError, match=r"No module named .tensorflow.*TFDS_DATA_DIR"):
        load_rows("tfds:gsm8k")


def test_specs_go_to_their_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert specs.kind_of("org/name") == ("disk", "org/name")
    assert specs.kind_of("org/other:config") == ("hub", "org/other:config")
    assert specs.kind_of("hub:org/name") == ("hub", "org/name")
    assert specs.kind_of("tfds:a/b:1.0.0") == ("tfds", "a/b:1.0.0")
    assert specs.kind_of("rows.json.gz") == ("files", "rows.json.gz")
    assert specs.kind_of("data/**/x-[0-9].csv") == ("files", "data/**/x-[0-9].csv")
