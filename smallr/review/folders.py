"""Finds out what a folder or file holds, by what the methods write, and reads its rows.

run of `smallr crv`        its data sets `verified` and `failed`
run of `smallr collate`    the pairs of every stage that makes some
run of `smallr plan`       executed candidates, with the judgements of the discriminator that finished last
run of `smallr decompose`  its data set `decompositions`
`smallr evaluate`          samples.jsonl
data set, JSON lines       CRV rows, decompositions, pairs, prompts with completions, or rationales, by their columns
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from smallr.core.errors import UserError
from smallr.core.files import read_json, read_json_lines
from smallr.core.stages import RESULT, RUN
from smallr.evals.store import SAMPLES, read_samples
from smallr.review.kinds import crv, decompositions, evaluations, pairs, planner, texts
from smallr.review.rows import Kind, Row, RowMaker, has_columns

# Columns of rows of each kind, the most special ones first.
_BY_COLUMNS = (
    (crv, (crv.COLUMNS,)),
    (decompositions, (decompositions.COLUMNS,)),
    (pairs, (pairs.COLUMNS,)),
    (texts, texts.COLUMNS),
)
_KNOWN = (
    "a run of smallr crv, collate, plan or decompose, an evaluation, or a data set (save_to_disk, or JSON lines) with "
    "chosen and rejected, prompt and completion, or question, rationale and answer"
)


@dataclasses.dataclass(frozen=True)
class ReviewSet:
    """Holds the rows of a folder or file.

    Attributes:
      path: what was opened.
      home: folder of the decisions: `review` in a run, or beside a data set, which is replaced as a whole when it is
        written anew.
      kind: of its rows.
      rows: all of them.
      features: of each data set they come from, by split; empty for JSON lines.
      inputs: the files and folders that were read.
      stamp: of the inputs when they were read.
    """

    path: Path
    home: Path
    kind: Kind
    rows: Sequence[Row]
    features: Mapping[str, datasets.Features]
    inputs: Sequence[Path]
    stamp: tuple[Any, ...]

    def has_changed(self) -> bool:
        """Returns whether an input has been written since it was read."""
        return _stamp(self.inputs) != self.stamp


def open_set(path: Path) -> ReviewSet:
    """Reads what there is to review.

    Raises:
      UserError: nothing there is known, it is damaged or unfinished, or it has no rows.
    """
    path = path.resolve()  # so that whatever name leads here, the decisions are the same
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    read, is_run = _reader(path)
    inputs = read.inputs
    stamp = _stamp(inputs)
    kind, rows, features = read()
    if not rows:
        raise UserError(f"{path}: there is no row to review")
    home = path / "review" if is_run else path.with_name(f"{path.name}.review")
    return ReviewSet(path, home, kind, rows, features, inputs, stamp)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one kind of folder: a function and the inputs that it is called with."""

    function: Callable[..., tuple[Kind, list[Row], dict[str, datasets.Features]]]
    inputs: tuple[Path, ...]

    def __call__(self) -> tuple[Kind, list[Row], dict[str, datasets.Features]]:
        return self.function(*self.inputs)


def _reader(path: Path) -> tuple[_Reader, bool]:
    """Returns what reads a path, and whether it is a run."""
    if path.is_file():
        return _Reader(_json_lines, (path,)), False
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return _Reader(_data_sets, (path,)), False
    if (path / SAMPLES).is_file():
        return _Reader(_evaluation, (path,)), True
    what = read_json(path / RUN).get("what", "") if (path / RUN).is_file() else ""
    if what == "CRV run":
        return _Reader(_data_sets, _written(path, ("verified", "failed"), "smallr crv annotate")), True
    if what == "generation of decompositions" or (path / "decompositions").is_dir():
        return _Reader(_data_sets, _written(path, ("decompositions",), "smallr decompose")), True
    if what == "COLLATE run":
        stages = sorted(stage for stage in path.glob("*pairs_*") if (stage / RESULT).is_file())
        if not stages:
            raise UserError(f"{path}: no stage has written pairs yet; go on with smallr collate")
        return _Reader(_collate, tuple(stages)), True
    if any((stage / RESULT).is_file() for stage in path.glob(f"{planner.EXECUTED}-*")):
        return _Reader(_planner, (path,)), True
    raise UserError(f"{path} holds nothing that can be reviewed: give {_KNOWN}")


def _written(path: Path, names: Sequence[str], command: str) -> tuple[Path, ...]:
    found = tuple(path / name for name in names if (path / name).is_dir())
    if not found:
        raise UserError(f"{path}: no data set {names[0]!r} yet; run {command} to its end first")
    return found


def _data_sets(*folders: Path) -> tuple[Kind, list[Row], dict[str, datasets.Features]]:
    """Reads data sets; rows of splits of one name stand together."""
    splits: dict[str, list[Mapping[str, Any]]] = {}
    features: dict[str, datasets.Features] = {}
    for folder in folders:
        for split, rows in _splits(folder).items():
            splits.setdefault(split, []).extend(rows.to_list())
            features[split] = rows.features
    return *_by_columns(folders[0], splits), features


def _splits(folder: Path) -> dict[str, datasets.Dataset]:
    try:
        loaded = datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be read, write it again with save_to_disk: {error}") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _json_lines(path: Path) -> tuple[Kind, list[Row], dict[str, datasets.Features]]:
    return *_by_columns(path, {"train": read_json_lines(path)}), {}


def _by_columns(path: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Kind, list[Row]]:
    first = next((row for rows in splits.values() for row in rows), None)
    if first is None:
        raise UserError(f"{path}: it holds no rows")
    for module, alternatives in _BY_COLUMNS:
        columns = next((names for names in alternatives if has_columns(first, names)), None)
        if columns is not None:
            return module.KIND, list(_rows(path, splits, columns, module.row))
    raise UserError(f"{path}: rows with {', '.join(first)} are of no kind that can be reviewed: give {_KNOWN}")


def _rows(
    path: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], columns: Sequence[str], make_row: Callable[..., Row]
) -> Iterator[Row]:
    make = RowMaker()
    for split, rows in splits.items():
        for number, values in enumerate(rows):
            if missing := [name for name in columns if name not in values]:
                raise UserError(
                    f"{path}, split {split!r}, row {number}: no column {missing[0]!r}, which other rows have"
                )
            try:
                yield make_row(make, split, number, values)
            except (TypeError, KeyError, AttributeError, ValueError) as error:
                problem = f"a value is of another type than smallr writes ({type(error).__name__}: {error})"
                raise UserError(f"{path}, split {split!r}, row {number}: {problem}") from error


def _collate(*stages: Path) -> tuple[Kind, list[Row], dict[str, datasets.Features]]:
    """Reads the pairs of each stage as a split of the stage's name."""
    splits, features = {}, {}
    for stage in stages:
        name = read_json(stage / RESULT, fields={"name": str})["name"]
        folder = stage / read_json(stage / RESULT)["value"]["mapping"]["rows"]["path"]
        (rows,) = _splits(folder).values()
        splits[name], features[name] = rows.to_list(), rows.features
    return pairs.KIND, list(_rows(stages[0].parent, splits, pairs.COLUMNS, pairs.row)), features


def _planner(folder: Path) -> tuple[Kind, list[Row], dict[str, datasets.Features]]:
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for split, values in planner.read(folder):
        splits.setdefault(split, []).append(values)
    return planner.KIND, list(_rows(folder, splits, ("id", "question", "candidates"), planner.row)), {}


def _evaluation(folder: Path) -> tuple[Kind, list[Row], dict[str, datasets.Features]]:
    return evaluations.KIND, list(evaluations.rows(RowMaker(), "train", read_samples(folder))), {}


def _stamp(inputs: Sequence[Path]) -> tuple[Any, ...]:
    """Returns names, sizes and times of the files that were read; a run's folder counts with its own files alone."""
    found = []
    for path in inputs:
        files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
        below = [file for folder in files if folder.is_dir() and folder.name != "review" for file in folder.iterdir()]
        for file in (*files, *below):
            if file.is_file() and not file.name.startswith("."):
                status = file.stat()
                found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(found)
