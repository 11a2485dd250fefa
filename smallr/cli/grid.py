"""A grid of config fields: what runs there are, and what they came to."""

from __future__ import annotations

import copy
import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from smallr.cli import fields
from smallr.cli.parsing import UsageError
from smallr.config import to_plain
from smallr.core.errors import UserError
from smallr.data.errors import nearest

if TYPE_CHECKING:
    from smallr.core.comparison import Mean, Row
    from smallr.core.stages import Stage

DIVERGED = "diverged"  # metric of a run: 1 where its loss stopped being finite
_OPENING, _CLOSING = "([{", ")]}"
_SHOWN = ("loss", "accuracy", "margin")  # metrics that a table has beside the one that decides
_LOWER = re.compile(r"loss|nll|perplexity|kl|drift")  # names of metrics of which the lowest is the best
_NAMED = 60  # characters of a setting in the name of a stage


@dataclass(frozen=True)
class Setting:
    """One point of a grid: the text of each field, as a command line has it."""

    values: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return ", ".join(f"{path}={text}" for path, text in self.values) or "as the config says"

    def flags(self) -> list[str]:
        """Returns the flags that set it."""
        return [f"--config.{path}={text}" for path, text in self.values]

    def config(self, config: ConfigDict) -> ConfigDict:
        """Returns a config with the fields of this point.

        Raises:
          UserError: no such field, or a value of another type.
        """
        changed = copy.deepcopy(config)
        for path, text in self.values:
            fields.set_field(changed, path, text)
        return changed


def read_grid(texts: Sequence[str]) -> list[Setting]:
    """Reads `FIELD=VALUE,VALUE,…` once for each field; gives all combinations, the last field changing fastest.

    Commas inside brackets and quotes belong to a value.

    Raises:
      UsageError: no field or no value, or one of them twice.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        path, equals, values = text.removeprefix("--").removeprefix("config.").partition("=")
        found = split_values(values)
        if not (path and equals) or not all(found):
            raise UsageError(
                f"sweep: --grid={text}: expected FIELD=VALUE,VALUE, e.g. optimizer.learning_rate=1e-6,3e-6"
            )
        if path == "seed":
            raise UsageError("sweep: --grid=seed: seeds are not a setting to choose; give their number, --seeds=3")
        if twice := [value for value in found if found.count(value) > 1]:
            raise UsageError(f"sweep: --grid={text}: the value {twice[0]} stands twice")
        if path in axes:
            raise UsageError(f"sweep: --grid={path} is given twice; write all its values behind one another")
        axes[path] = found
    return [Setting(tuple(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def split_values(text: str) -> list[str]:
    """Splits a text at the commas that are not inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and not (depth or quote):
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def stages_of(config: ConfigDict, settings: Sequence[Setting], seeds: int) -> dict[Stage, tuple[ConfigDict, Setting]]:
    """Makes a stage a run, in order: all settings with the first seed, then with the next.

    Raises:
      UserError: a field or a value that the config cannot have, or two settings that are the same.
    """
    from smallr.core.stages import Stage

    found: dict[Stage, tuple[ConfigDict, Setting]] = {}
    for seed, setting in itertools.product(range(config.seed, config.seed + seeds), settings):
        run = setting.config(config)
        run.seed = seed
        told = {"setting": str(setting), "seed": seed, "config": to_plain(run)}
        same = next((each for each in found if each.settings["config"] == told["config"]), None)
        if same is not None:
            raise UserError(f"--grid: {setting} is the same as {found[same][1]}: leave one of them out")
        found[Stage(_name(setting, seed), told)] = run, setting
    return found


def _name(setting: Setting, seed: int) -> str:
    """Returns the name of a run's folder; the digest behind it tells runs apart."""
    parts = [f"{path.rpartition('.')[2]}={text}" for path, text in setting.values]
    text = re.sub(r"[^A-Za-z0-9._+=,-]+", "_", ",".join(parts))[:_NAMED].lstrip("._+=,-")
    return f"{text or 'run'}-s{seed}"


class Results:
    """The finished runs of a sweep.

    Args:
      rows: of `Stages.run`, with the columns `setting` and `seed`.
      metric: that decides; empty: the benchmark's accuracy, else accuracy, else loss.
      goal: min | max; empty: by the metric's name.

    Raises:
      UserError: no run has the metric.
    """

    def __init__(self, rows: Sequence[Row], metric: str = "", goal: str = ""):
        self.rows = [{name: value for name, value in row.items() if not name.startswith("config.")} for row in rows]
        known = dict.fromkeys(name for row in self.rows for name, value in row.items() if isinstance(value, float))
        known = [name for name in known if name not in ("seconds", DIVERGED)]
        if metric and known and metric not in known:
            raise UserError(
                f"--metric={metric}: must be one of: {', '.join(known)}{nearest(metric, known)}; what is finished is kept"
            )
        self.metric = metric or next((n for n in ("benchmark/accuracy", "accuracy", "loss") if n in known), "loss")
        self.lowest = goal == "min" or (not goal and bool(_LOWER.search(self.metric)))
        benchmark = [name for name in known if name.startswith("benchmark/") and not name.endswith("/stderr")]
        self.shown = [name for name in dict.fromkeys((self.metric, *benchmark, *_SHOWN)) if name in known]

    def best(self) -> str | None:
        """Returns the setting with the best mean, None if none has one; settings with a diverged run come last."""
        from smallr.core.comparison import groups, means

        def rank(item: tuple[tuple[str], list[Row]]) -> tuple[float, float]:
            found = means(item[1], self.metric)
            return means(item[1], DIVERGED).value, found.value if self.lowest else -found.value

        known = {key: each for key, each in groups(self.rows, ["setting"]).items() if means(each, self.metric).count}
        return min(known.items(), key=rank)[0][0] if known else None

    def as_good(self) -> dict[str, Mean]:
        """Returns the settings that the seeds do not tell from the best: the interval of the paired difference holds 0."""
        from smallr.core.comparison import difference, groups

        found = groups(self.rows, ["setting"])
        best = self.best()
        differences = {
            key: difference(rows, found[(best,)], self.metric) for (key,), rows in found.items() if key != best
        }
        return {
            key: each
            for key, each in differences.items()
            if each.count and (math.isnan(each.half) or abs(each.value) <= each.half)
        }

    def table(self) -> str:
        """Returns a line for each setting, in markdown."""
        from smallr.core.comparison import groups, markdown, means

        several = any(row.get(DIVERGED) for row in self.rows)
        lines = []
        for (setting,), rows in groups(self.rows, ["setting"]).items():
            cells = [setting, str(len(rows)), *(means(rows, name).show(4) for name in self.shown)]
            lines.append(cells + ([f"{sum(row.get(DIVERGED, 0) for row in rows):g}"] if several else []))
        return markdown(["setting", "runs", *self.shown, *([DIVERGED] if several else [])], lines)

    def write(self, out: Path) -> list[str]:
        """Writes runs.csv, table.md and, if matplotlib is installed, plot.png; returns their names."""
        from smallr.core.comparison import bars, can_plot, write_csv
        from smallr.core.files import write_text

        write_csv(self.rows, out / "runs.csv")
        write_text(out / "table.md", self.table())
        if not (self.shown and can_plot()):
            return ["table.md", "runs.csv"]
        bars(self.rows, "setting", {name: name for name in self.shown}, out / "plot.png")
        return ["table.md", "runs.csv", "plot.png"]


def train_command(argv: Sequence[str], setting: Setting, seed: int) -> str:
    """Returns the command line that trains one setting by itself.

    Args:
      argv: of the sweep.
      setting: of the grid.
      seed: of the run.
    """
    own = ("--grid", "--seeds", "--out", "--metric", "--goal", "--share", "--keep_checkpoints", "--keep-checkpoints")
    kept, words = [], iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in own:
            kept.append(word)
        elif not equals and not name.startswith("--keep"):
            next(words, None)
    return shlex.join(["smallr", "train", *kept, *setting.flags(), f"--config.seed={seed}"])


def metrics_of(report: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns what a finished run came to.

    Args:
      report: of the run.
      lines: of its metrics.jsonl.
    """
    asked = [line for line in lines if line.get("split") == "benchmark"]
    last = {f"benchmark/{name}": value for name, value in (asked[-1] if asked else {}).items()}
    left = ("benchmark/step", "benchmark/time", "benchmark/split")
    found = {**(report["after"] or {}), **{name: value for name, value in last.items() if name not in left}}
    return {name: float(value) for name, value in found.items()}
