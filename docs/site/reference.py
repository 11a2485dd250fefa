"""Writes the pages of configs, losses and commands from the config tree, the registry of losses and the commands' flags."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import re
from collections.abc import Callable, Iterator
from unittest import mock

from ml_collections import ConfigDict

from smallr import config as tree
from smallr.cli import config_files, fields
from smallr.cli.main import COMMANDS
from smallr.cli.parsing import Parser
from smallr.losses.preference import registry
from smallr.losses.preference.unpaired import kto
from smallr.training.objective import OBJECTIVES

ARXIV = re.compile(r"(?:arXiv )?\b(\d{4}\.\d{5})\b")


def linked(text: str) -> str:
    """Returns the text with links to papers."""
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _cell(text: str) -> str:
    """Returns text for a cell of a table; Markdown escapes what stands in backticks itself."""
    parts = " ".join(text.replace("|", r"\|").split()).split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


def _value(value: object) -> str:
    text = str(value) if isinstance(value, str) else repr(value)
    return _cell(f"`{text}`") if text else "empty"


# Configs ------------------------------------------------------------------------------------------------------------


def _added(add: Callable[[ConfigDict], ConfigDict], names: tuple[str, ...]) -> Iterator[tuple[str, object, str]]:
    """Yields the fields of the groups `names` that a function adds to a config."""
    for path, value, meaning in fields.described(add(tree.base())):
        if path.split(".")[0] in names:
            yield path, value, meaning


def _sections() -> Iterator[tuple[str, str, list[tuple[str, object, str]]]]:
    """Yields title, introduction and fields of each section of the training configs."""
    yield "Every training run", "", list(fields.described(tree.base()))
    for title, text, make in (
        (
            "Pairs",
            "`dpo`, `cogpo`, `preference:LOSS`; `simpo_gamma` and the like belong to their losses.",
            tree.preference,
        ),
        ("KTO", "`kto`.", tree.unpaired),
        ("Rationales", "`adaptive/answer_first` and its like.", lambda: tree.rationale("answer_first")),
        ("Choices", "`adaptive/router`.", tree.choice),
        ("ILQL", "`smallr.config.ilql()`.", tree.ilql),
    ):
        config = make()
        common = {path for path, _, _ in fields.described(tree.base())}
        own = [
            entry for entry in fields.described(config) if entry[0] not in common and entry[0].split(".")[0] != "heads"
        ]
        yield title, text, own
    yield "LoRA", "Added by `--lora`; see [adapters](../adapters.md).", list(_added(tree.add_lora, ("lora",)))
    yield (
        "Heads",
        "Added by `smallr.config.add_heads`.",
        list(_added(functools.partial(tree.add_heads, q=2), ("heads",))),
    )
    yield "Soft prompts", "Added by `smallr.config.add_soft_prompts`.", list(_added(tree.add_soft_prompts, ("soft",)))
    labels = list(_added(tree.add_labels, ("student", "labels")))
    yield "Labels of a router", "Added by `smallr.config.add_labels`.", labels


def _table(entries: list[tuple[str, object, str]]) -> Iterator[str]:
    """Yields the lines of a table; fields without a meaning of their own stand in the line of their group."""
    meanings = {path: meaning for path, _, meaning in entries}
    folded: dict[str, dict[str, object]] = {}
    for path, value, meaning in entries:
        group, _, name = path.rpartition(".")
        if not meaning and meanings.get(group) and not isinstance(value, ConfigDict):
            folded.setdefault(group, {})[name] = value
    yield "| field | default | meaning |"
    yield "| --- | --- | --- |"
    for path, value, meaning in entries:
        group, _, name = path.rpartition(".")
        if name in folded.get(group, ()):
            continue
        if not isinstance(value, ConfigDict):
            yield f"| `{path}` | {_value(value)} | {_cell(meaning or _inherited(path, meanings))} |"
        elif path in folded:
            yield f"| `{path}.…` | {_defaults(folded[path])} | {_cell(meaning)} |"
        elif meaning:
            yield f"| **{path}** | | {_cell(meaning)} |"


def _inherited(path: str, meanings: dict[str, str]) -> str:
    """Returns the meaning of the nearest group of a field that has one."""
    groups = [path[:place] for place, letter in enumerate(path) if letter == "."]
    return next((meanings[group] for group in reversed(groups) if meanings.get(group)), "")


def _defaults(values: dict[str, object]) -> str:
    """Returns the fields of a group with their values; the names alone where each field has its own name."""
    if all(value == name for name, value in values.items()):
        return "each its own name: " + ", ".join(f"`{name}`" for name in values)
    return ", ".join(f"`{name}` = {_value(value)}" for name, value in values.items())


def configs() -> str:
    """Returns the page of all configs and their fields."""
    names = config_files.names()
    lines = [
        "# Configs",
        "",
        "A run is described by one config. A field is set by `--config.FIELD=VALUE`.",
        "`smallr configs show NAME` prints the same as this page, for the version that you have.",
        "",
        "## The configs by name",
        "",
    ]
    for name in names:
        first, _, rest = config_files.docstring(name).partition("\n")
        lines += [f'??? note "`{name}`: {first.replace(chr(34), chr(39))}"', ""]
        lines += [f"    {line}".rstrip() for line in ["```", *rest.strip("\n").splitlines(), "```"]]
        lines.append("")
    lines += ["## Fields of training configs", ""]
    listed: set[str] = set()
    for title, text, entries in (*_sections(), *_others(names)):
        groups = {path.rpartition(".")[0] for path, *_ in entries if path not in listed}
        own = [entry for entry in entries if title in _WHOLE or entry[0] not in listed or entry[0] in groups]
        listed |= {path for path, _, _ in own}
        lines += [f"### {title}", "", *([text, ""] if text else []), *_table(own), ""] if own else []
    for kind, name in _first_of_each_kind(names).items():
        lines += [f"## Fields of {_TITLES.get(kind, kind)} configs", ""]
        lines += [
            f"Defaults are those of `{name}`.",
            "",
            *_table(list(fields.described(config_files.load(name)[0]))),
            "",
        ]
    return "\n".join(lines)


_TITLES = {"evaluation": "evaluation", "crv": "CRV", "collate": "COLLATE", "planner": "planner"}
_WHOLE = ("Every training run", "Pairs", "KTO", "Rationales", "Choices", "ILQL")  # sections that show all their fields


def _first_of_each_kind(names: list[str]) -> dict[str, str]:
    """Returns a config of each kind but training."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(fields._kind(config_files.load(name)[0]), name)
    found.pop("training")
    return found


def _others(names: list[str]) -> Iterator[tuple[str, str, list[tuple[str, object, str]]]]:
    """Yields the sections of training configs by name, for fields that no other section has."""
    for name in names:
        config = config_files.load(name)[0]
        if fields._kind(config) == "training":
            yield f"`{name}`", "", list(fields.described(config))


# Losses -------------------------------------------------------------------------------------------------------------

_SYMBOLS = (
    (r"\blog sigma\(", "log σ("),
    (r"\bsigma\(", "σ("),
    (r"\beps\b", "ε"),
    (r"\bbeta\b", "β"),
    (r"\bdelta\b", "δ"),
    (r"\bgamma\b", "γ"),
    (r"\btau\b", "τ"),
    (r"\blambda_", "λ_"),
    (r"\bpi\(", "π("),
    (r"\^2", "²"),
)


def formula(doc: str) -> tuple[str, str]:
    """Returns what the docstring of a loss says that it returns, and where the loss is from."""
    first, _, rest = inspect.cleandoc(doc).partition("\n\n")
    text = " ".join(first.split()).removeprefix("Returns ").rstrip(".")
    for pattern, symbol in _SYMBOLS:
        text = re.sub(pattern, symbol, text)
    return text, " ".join(rest.partition("\n\nArgs:")[0].split())


def recipe_sources() -> dict[str, str]:
    """Returns where each published mix is from: the comments beside `RECIPES`."""
    source = inspect.getsource(registry)
    return dict(re.findall(r'^    "(\w+)": "[^"]+",  # (.+)$', source, re.MULTILINE))


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _beta(loss: registry.Loss) -> str:
    if not loss.beta:
        return "no beta"
    if loss.no_beta_per_pair:
        return "one for all"
    return "one, or one a gap, above 0" if loss.positive_beta else "one, or one a gap"


def losses() -> str:
    """Returns the page of losses and objectives."""
    free = [name for name, loss in registry.LOSSES.items() if not loss.reference]
    mixes = {name: registry.parse(name) for name in registry.RECIPES}
    free += [name for name, mix in mixes.items() if not mix.reference]
    lines = [
        "# Losses",
        "",
        "**Without a reference:** " + ", ".join(f"`{name}`" for name in free) + " among the losses of pairs,",
        "and the objectives `sft`, `rationale`, `choice` and `ilql`. All others compare with a reference model,",
        "by default with log-probs that are computed once and cached (`config.objective.reference`).",
        "",
        "`smallr train preference:NAME` trains with any loss of this page. `cogpo:NAME` gives it a beta for",
        "each gap. A weighted sum is a loss too: `preference:'0.8*sigmoid+0.2*bco_pair+sft'`.",
        "",
        "## Losses of pairs",
        "",
        "w is the chosen and l the rejected completion. r = log π − log ref, summed over a completion;",
        "h = r_w − r_l; z = β h. A beta makes the loss steeper: the larger it is, the smaller the change of the",
        "log-ratio at which the loss of a pair is nearly zero.",
        "",
        "| name | loss of a pair | reference | beta | other fields | whole step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    sources = []
    for name, loss in registry.LOSSES.items():
        if loss.given is not None:
            continue
        text, source = formula(loss.function.__doc__)
        own = ", ".join(f"`{key}` = {field.default:g}" for key, field in loss.fields.items())
        cells = (f"`{name}`", _cell(text), _yes(loss.reference), _beta(loss), own, _yes(loss.whole_step))
        lines.append("| " + " | ".join(cells) + " |")
        if source:
            sources.append(f"- `{name}`: {linked(source)}")
    lines += ["", "A loss of a whole step cannot be computed in micro-batches (`batch.accumulation`).", ""]
    lines += ["### Where they are from", "", *sources, "", "### Published mixes", ""]
    lines += ["| name | is | reference | source |", "| --- | --- | --- | --- |"]
    for name, mix in mixes.items():
        source = linked(recipe_sources().get(name, "see its terms"))
        lines.append(f"| `{name}` | `{registry.RECIPES[name]}` | {_yes(mix.reference)} | {source} |")
    lines += ["", "### Their fields", "", "| field | meaning | from | to |", "| --- | --- | --- | --- |"]
    known = {key: field for loss in registry.LOSSES.values() for key, field in loss.fields.items() if not loss.given}
    lines += [f"| `{key}` | {field.meaning} | {field.low:g} | {field.high:g} |" for key, field in known.items()]
    lines += ["", "## Other objectives", "", *_objectives()]
    return "\n".join(lines) + "\n"


def _objectives() -> Iterator[str]:
    """Yields the lines on objectives that are no losses of pairs."""
    text, source = formula(kto.__doc__)
    about = {
        "unpaired": ("yes: cached or live", f"KTO. {_cell(text)}. {linked(source)}"),
        "sft": ("no", "Likelihood of the completion, a mean over the tokens of a step."),
        "rationale": ("no", "Likelihood of answer and rationale, weighted, in either order (arXiv 2404.09170)."),
        "choice": ("no", "Cross-entropy between two tokens, of which the row says which is right."),
        "ilql": ("no", "Values of tokens from logged rewards, on heads (arXiv 2206.11871, 2402.01812)."),
    }
    yield "| `objective.name` | reference | what it minimises |"
    yield "| --- | --- | --- |"
    for name, make in OBJECTIVES.items():
        if name != "preference":
            own = getattr(make, "__self__", None)
            reference, text = about.get(name) or (own.reference, inspect.getdoc(own).partition("\n")[0])
            yield f"| `{name}` | {reference} | {linked(text) if name != 'unpaired' else text} |"
    yield ""
    yield "Your own loss or objective is registered in twenty lines: [Python](../api.md)."


# Commands -----------------------------------------------------------------------------------------------------------


def help_of(name: str) -> str:
    """Returns what `smallr NAME --help` prints."""
    command = importlib.import_module(COMMANDS[name][0])
    parser = Parser(name, command.__doc__ or "")
    command.flags(parser)
    if parser.passes_on:
        return (command.__doc__ or "").strip()
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), mock.patch.dict("os.environ", COLUMNS="100"):
        parser.parse(["--help"])
    return shown.getvalue().strip()


def commands() -> str:
    """Returns the page of all commands and their flags."""
    lines = [
        "# Commands",
        "",
        "What `smallr COMMAND --help` prints. Configs and exit codes: [command line](../command_line.md).",
        "",
    ]
    lines += ["| command | does |", "| --- | --- |"]
    lines += [f"| [`{name}`](#{name}) | {summary} |" for name, (_, summary) in COMMANDS.items()]
    for name in COMMANDS:
        lines += ["", f"## {name}", "", "```text", help_of(name), "```"]
    return "\n".join(lines) + "\n"
