"""Opens a source of rows: a spec of a data set gives a `datasets.Dataset` with our column names.

  folder written by `save_to_disk`           runs/rows, disk:runs/rows
  file or glob of files                      rows.jsonl.gz, "data/*.parquet", files:rows.json
  TFDS, read without TensorFlow              tfds:gsm8k, tfds:name/config:1.0.0
  built in                                   builtin:arithmetic/preference, /rationale, /sft, /teacher
  Hugging Face hub                           org/name, org/name:config, hub:name

What exists on disk goes before the hub. A split is a name, or a part of it: `train[:90%]`, `train[-100:]`. Files and
folders that hold no splits have one, `train`. No code of a data set is ever run, and no pickle is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from smallr.data.errors import DataError, nearest
from smallr.data.files import separator_hint
from smallr.data.formats import COLUMNS
from smallr.data.specs import HUB_ID, OFFLINE_CHOICES, check_source, file_paths, kind_of
from smallr.data.tables import read_table

_SPLIT = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class LoadedPart(NamedTuple):
    """Rows of a part of a split.

    Attributes:
      rows: under our column names.
      available: rows of the whole split.
      numbers: of each row in the whole split, from 0.
    """

    rows: datasets.Dataset
    available: int
    numbers: Sequence[int]


def load_rows(spec: str, split: str = "train", columns: Mapping[str, str] | None = None) -> datasets.Dataset:
    """Loads the rows of one split.

    Args:
      spec: what and where, see the module; the prefixes `disk:`, `files:` and `hub:` force a kind.
      split: name, or a part of it as in `train[:90%]`.
      columns: our name -> the source's name; names that are not mapped stay.

    Raises:
      DataError: nothing there, a split or a column missing, a line that is not JSON, a hub that cannot be reached.
    """
    return load_part(spec, split, columns).rows


def load_part(spec: str, split: str, columns: Mapping[str, str] | None = None, without: str = "") -> LoadedPart:
    """Loads the rows of one split, with their numbers in the whole split.

    Args:
      spec: as in `load_rows`.
      split: name, or a part of it.
      columns: as in `load_rows`.
      without: another split or part; rows that are in both are left out.

    Raises:
      DataError: as `load_rows`.
    """
    (name, wanted), (other, unwanted) = _named_part(split), _named_part(without or split)
    kind, rest = kind_of(spec)
    rows = _LOADERS[kind](rest, name)
    part: Sequence[int] = _part(len(rows), *wanted)
    if without and name == other:
        held = _part(len(rows), *unwanted)
        part = [index for index in part if index not in held]
    if not len(part):
        raise DataError(f"{spec}: split {split!r} holds no rows" + (f" besides {without}" if without else ""))
    kept = rows.select(part) if len(part) < len(rows) else rows
    return LoadedPart(rename(kept, columns or {}, spec), len(rows), part)


def is_builtin(spec: str) -> bool:
    """Returns whether a spec is of built-in data."""
    return spec.startswith("builtin:")


def is_single(spec: str) -> bool:
    """Returns whether a spec is of files, which hold one split, `train`."""
    return kind_of(spec)[0] == "files"


def _named_part(split: str) -> tuple[str, tuple[str | None, str | None]]:
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise DataError(f"split {split!r}: expected a name, or a part of it like train[:90%] or train[100:200]")
    return match["name"], (match["start"], match["stop"])


def rename(rows: datasets.Dataset, columns: Mapping[str, str], source: str) -> datasets.Dataset:
    """Gives columns our names; a column that has such a name already and is not wanted makes room.

    Raises:
      DataError: a name that is not one of ours, or a column that is not there.
    """
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise DataError(
                f"columns: {ours!r} must be one of our columns: {', '.join(COLUMNS)}{nearest(ours, COLUMNS)}"
            )
        if theirs not in rows.column_names:
            raise DataError(
                f"{source}: no column {theirs!r} to use as {ours!r}; present {', '.join(rows.column_names)}"
                f"{separator_hint(rows.column_names) or nearest(theirs, rows.column_names)}"
            )
    # Through the table, so that two of ours may read one of theirs and names may be exchanged.
    kept = {name: name for name in rows.column_names if name not in columns and name not in columns.values()}
    wanted = {**kept, **columns}
    features = datasets.Features({ours: rows.features[theirs] for ours, theirs in wanted.items()})
    if all(ours == theirs for ours, theirs in wanted.items()):
        return rows
    if len(set(wanted.values())) == len(wanted):
        return rows.select_columns(list(wanted.values())).rename_columns({v: k for k, v in wanted.items()})
    return rows.map(
        lambda batch: {ours: batch[theirs] for ours, theirs in wanted.items()},
        batched=True,
        remove_columns=rows.column_names,
        features=features,
    )


def _disk(folder: str, split: str) -> datasets.Dataset:
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder")
    try:
        loaded = datasets.load_from_disk(folder)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: not a folder that datasets' save_to_disk has written; for the files in it give a glob, "
            f"e.g. {folder.rstrip('/')}/*.jsonl"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: cannot be read, write it again with save_to_disk: {error}") from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return splits[_known_split(folder, split, list(splits))]


def _files(pattern: str, split: str) -> datasets.Dataset:
    paths = file_paths(pattern)
    _known_split(pattern, split, ["train"])
    return read_table(paths, pattern)


def _tfds(name: str, split: str) -> datasets.Dataset:
    try:
        import tensorflow_datasets as tfds  # only here: an extra, and half a second
    except ImportError as error:
        raise DataError(
            f"tfds:{name} needs the package tensorflow-datasets: pip install tensorflow-datasets importlib_resources"
        ) from error
    try:
        splits = tfds.data_source(name)
    except tfds.core.registered.DatasetNotFoundError as error:  # its message lists a thousand names
        raise DataError(
            f"tfds:{name}: TFDS has no such data set{nearest(name, tfds.list_builders(with_community_datasets=False))}"
        ) from error
    except ImportError as error:
        raise DataError(
            f"tfds:{name}: preparing it needs a package that is not installed ({error}); smallr does not use "
            "TensorFlow. Prepare it elsewhere with `tfds build --file_format=array_record`, and point TFDS_DATA_DIR to it."
        ) from error
    except Exception as error:  # builders raise what they like
        raise DataError(f"tfds:{name}: {str(error).strip()}. {OFFLINE_CHOICES}.") from error
    source = splits[_known_split(f"tfds:{name}", split, list(splits))]
    return datasets.Dataset.from_list(
        [{key: _plain(value) for key, value in source[index].items()} for index in range(len(source))]
    )


def _plain(value: Any) -> Any:
    """Returns a TFDS value as Python has it, with text for bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value  # an image or the like
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _builtin(name: str, split: str) -> datasets.Dataset:
    check_source(f"builtin:{name}")
    from smallr.data import builtin  # it writes data sets, so it may come to import this module's neighbours

    _, _, data = name.partition("/")
    rows = _disk(str(builtin.ensure_built() / ("rationale" if data == "sft" else data)), split)
    return rows.rename_columns({"question": "prompt", "rationale": "completion"}) if data == "sft" else rows


def _hub(spec: str, split: str) -> datasets.Dataset:
    match = HUB_ID.fullmatch(spec)
    if match is None:
        raise DataError(f"hub:{spec}: expected org/name or org/name:config")
    try:
        return datasets.load_dataset(match["id"], match["config"], split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(f"{spec}: the hub has no such data set, or it needs `hf auth login`: {error}") from error
    except ConnectionError as error:
        offline = "HF_HUB_OFFLINE is set" if datasets.config.HF_HUB_OFFLINE else "is there a network?"
        raise DataError(f"{spec}: the hub cannot be reached ({offline}). {OFFLINE_CHOICES}.") from error
    except RuntimeError as error:
        raise DataError(f"{spec}: {error}. smallr runs no code of a data set; convert it to Parquet first.") from error
    except ValueError as error:  # names the splits or the configs there are
        raise DataError(f"{spec}: {error}") from error


def _known_split(source: str, split: str, splits: list[str]) -> str:
    if split not in splits:
        raise DataError(
            f"{source}: no split {split!r}; there is {', '.join(splits)}{nearest(split, splits)}. "
            "A part of a split is written like train[:90%]."
        )
    return split


def _part(count: int, start: str | None, stop: str | None) -> range:
    """Returns rows [start:stop] of `count`; `10%` is a tenth of them."""

    def index(text: str | None) -> int | None:
        if text is None or not text.endswith("%"):
            return None if text is None else int(text)
        return round(count * int(text[:-1]) / 100)

    return range(count)[index(start) : index(stop)]


_LOADERS: dict[str, Callable[[str, str], Any]] = {
    "disk": _disk,
    "files": _files,
    "tfds": _tfds,
    "builtin": _builtin,
    "hub": _hub,
}
