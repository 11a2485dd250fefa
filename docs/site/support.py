"""Says which features go together: the one table behind the page, which `tests/docs/test_support.py` enforces.

A pair of features that is not in `REFUSED` works. For each pair that works the test starts a run with both, as far as a
config can be checked; for each pair that is refused it provokes the refusal and compares the message.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from smallr.cli import config_files, fields
from smallr.config import add_heads, add_soft_prompts, ilql


@dataclasses.dataclass(frozen=True)
class Feature:
    """Describes what a run can have.

    Attributes:
      name: on the page.
      group: features of one group exclude each other, unless the group is empty.
      how: how it is asked for.
      config: the config that has it; of objectives.
      change: fields that turn it on.
      adds: turns it on where fields have to be added.
    """

    name: str
    group: str
    how: str
    config: str | Callable[[], ConfigDict] = ""
    change: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adds: Callable[[ConfigDict], ConfigDict] | None = None


def _objective(name: str, config: str | Callable[[], ConfigDict], how: str = "") -> Feature:
    return Feature(name, "objective", how or f"`smallr train {str(config).removesuffix(':smoke')}`", config)


def _option(name: str, group: str = "", how: str = "", **change: Any) -> Feature:
    change = {path.replace("__", "."): value for path, value in change.items()}
    shown = ", ".join(f"`{path}={value}`" for path, value in change.items())
    return Feature(name, group, how or shown, change=change)


FEATURES: dict[str, Feature] = {
    "pairs": _objective("pairs: DPO, IPO …", "dpo:smoke", "`smallr train dpo`, `preference:LOSS`"),
    "cogpo": _objective("a beta for each gap", "cogpo:smoke"),
    "sorting": _objective("losses of a whole step", "preference:aot,smoke", "`preference:aot`, `bco_pair_shift`"),
    "free": _objective("pairs without a reference", "simpo:smoke", "`smallr train simpo`, `preference:orpo`"),
    "kto": _objective("KTO", "kto:smoke"),
    "sft": _objective("SFT", "sft:smoke"),
    "rationale": _objective("rationale and answer", "adaptive/answer_first:smoke"),
    "ilql": _objective("ILQL", ilql, "`objective.name=ilql`"),
    "live": _option("live reference", "reference", objective__reference="live"),
    "columns": _option("reference from columns", "reference", objective__reference="columns"),
    "moving": _option("moving reference (TR-DPO)", "reference", objective__reference="live", objective__sync_every=10),
    "divergence": _option("another divergence", objective__divergence="js"),
    "ld": _option("LD-DPO", objective__ld_alpha=0.5),
    "wpo": _option("WPO", objective__weighting="wpo"),
    "lora": Feature("LoRA", "parameters", "`--lora`", adds=fields.with_lora),
    "qlora": Feature(
        "QLoRA", "parameters", "`--lora`, `lora.base=nf4`", change={"lora.base": "nf4"}, adds=fields.with_lora
    ),
    "soft": Feature("soft prompts", "", "`smallr.config.add_soft_prompts`", adds=add_soft_prompts),
    "freeze": _option("frozen parts", freeze="embed"),
    "heads": Feature("value and Q heads", "", "`smallr.config.add_heads`", adds=functools.partial(add_heads, q=2)),
    "window": Feature("sliding windows", "", "Gemma, Mistral, Phi-3, Qwen with windows"),
    "packing": _option("no packing", batch__packing=False),
    "accumulation": _option("micro-batches", batch__accumulation=2),
    "truncation": _option("prompts shortened", data__truncation="truncate_prompt_left"),
    "mixture": _option(
        "several sources", how="`data.train=[…]`", data__train=[{"path": "builtin:arithmetic/preference", "weight": 2}]
    ),
    "float32": _option("float32", compute__dtype="float32"),
    "remat": _option("remat=full", compute__remat="full"),
    "mesh": _option("several devices", how="`mesh.fsdp=-1`, `mesh.tensor=2`"),
    "context": _option("rows over several devices", how="`mesh.context=2`"),
    "over_data": _option("optimizer's state over `data`", optimizer__shard_over_data=True),
    "adafactor": _option("Adafactor", "optimizer", optimizer__name="adafactor"),
    "muon": _option("Muon", "optimizer", optimizer__name="muon"),
    "adamw8bit": _option("AdamW in 8 bits", "optimizer", optimizer__name="adamw8bit"),
    "kernel": _option("a kernel for attention", how="`compute.attention=tpu`, `gpu`", compute__attention="tpu"),
    "benchmark": _option("benchmark while training", benchmark__name="gsm8k"),
    "folders": _option("folders while training", checkpoint__hf_every=10),
    "extend": _option("a longer run", optimizer__on_extend="rewarm"),
}


def _refusals() -> dict[frozenset[str], tuple[str, str]]:
    """Returns, for each pair of features that is refused, the reason and a part of the message."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for objective in ("sft", "rationale", "ilql"):
        for option in ("live", "columns", "moving", "divergence", "ld", "wpo"):
            found[objective, option] = ("it compares with no reference", "no such field")
    for option in ("divergence", "ld", "wpo"):
        found["kto", option] = ("defined for pairs alone", "no such field")
    found["kto", "columns"] = ("it needs the reference of mismatched completions too", "KTO needs the reference")
    sorts = "it compares sorted values, so that no term belongs to a pair"
    found["sorting", "divergence"] = (sorts, "no function of a difference of rewards")
    found["sorting", "wpo"] = (sorts, "a weight of each pair has no meaning")
    found["sorting", "accumulation"] = ("a micro-batch is not the whole step", "set config.batch.accumulation=1")
    found["kto", "accumulation"] = ("its KL is of all rows of a step", "set config.batch.accumulation=1")
    for objective in ("pairs", "cogpo", "sorting", "kto", "live", "columns", "moving"):
        found[objective, "soft"] = ("a reference could not read soft tokens", "a reference without soft prompts")
    for option in ("ilql", "heads"):
        found[option, "soft"] = ("with soft prompts nothing else is trained", "nothing but soft prompts is trained")
    for option in ("lora", "qlora", "freeze"):
        found[option, "soft"] = ("with soft prompts all else is frozen", "all but the soft prompts is frozen")
    for option in ("lora", "qlora"):
        found[option, "freeze"] = ("all but the adapters is frozen already", "with config.lora all but the adapters")
    found["columns", "ld"] = ("columns hold sums, LD-DPO weighs tokens", "columns hold sums")
    found["soft", "benchmark"] = ("its prompts have no soft tokens", "its prompts have no soft tokens")
    found["context", "kernel"] = ("kernels know whole rows alone", "this kernel does not know")
    found["context", "benchmark"] = ("answers are written by rows of one device", "answers are not written on a mesh")
    for option in ("lora", "qlora", "soft"):
        found["muon", option] = (
            "adapters and soft prompts are no whole matrices",
            "adapters and soft prompts are none",
        )
    found["soft", "folders"] = ("soft prompts are exported at the end", "soft prompts are exported at the end")
    return {frozenset(pair): reason for pair, reason in found.items()}


REFUSED = _refusals()
OBJECTIVES = [key for key, feature in FEATURES.items() if feature.group == "objective"]
OPTIONS = [key for key in FEATURES if key not in OBJECTIVES]


def exclusive(a: str, b: str) -> bool:
    """Returns whether a run has one feature of the two."""
    return FEATURES[a].group == FEATURES[b].group != ""


def base_of(*options: str) -> str:
    """Returns an objective that each of the options goes with, or at least the last one."""
    for wanted in (options, options[-1:]):
        for objective in OBJECTIVES:
            if all(frozenset((objective, option)) not in REFUSED for option in wanted):
                return objective
    raise LookupError(f"no objective has {options[-1]}")


def run_with(objective: str, *names: str) -> ConfigDict:
    """Returns the config of a run of an objective with features.

    Raises:
      UserError: a field that the config does not have.
    """
    config = _config(objective).copy_and_resolve_references()
    features = [FEATURES[name] for name in names]
    with config.unlocked():
        config.batch.rows = 8
        for feature in features:
            if feature.adds:
                config = feature.adds(config)
    config.lock()
    for feature in features:
        for path, value in feature.change.items():
            fields.set_value(config, path, value)
    return config


@functools.cache
def _config(objective: str) -> ConfigDict:
    config = FEATURES[objective].config
    return config() if callable(config) else config_files.load(config)[0]


def page() -> str:
    """Returns the page of the support matrix."""
    lines = [
        "# What works with what",
        "",
        f"Of {sum(1 for _ in _pairs())} pairs of features {sum(pair in REFUSED for pair in _pairs())} are refused, before any",
        "weights are read, with a message that says why. All others work. A test starts a run with each",
        "pair, as far as a config can be checked, and provokes each refusal.",
        "",
        "## What is refused",
        "",
        *_refused(),
        "",
        _NOTES,
    ]
    reasons: dict[str, int] = {}
    folded = ('<details markdown="1">', "<summary>Every feature with every other</summary>")
    lines += ["## The whole table", "", *folded, ""]
    lines += ["`✓` works, `–` one of the two is chosen, a number is refused for the reason below.", ""]
    for title, across in (("Objectives", OBJECTIVES), ("Options", OPTIONS)):
        lines += [f"### {title}", "", "| | " + " | ".join(_short(key) for key in across) + " |"]
        lines.append("| --- " * (1 + len(across)) + "|")
        for row in OPTIONS:
            cells = [_cell(row, column, reasons) for column in across]
            lines.append(f"| {FEATURES[row].name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["### Reasons", "", *(f"{number}. {reason}" for reason, number in reasons.items()), "", "</details>", ""]
    lines += ["## How each is asked for", "", "| feature | fields or command |", "| --- | --- |"]
    lines += [f"| {feature.name} | {feature.how} |" for feature in FEATURES.values()]
    return "\n".join(lines) + "\n"


def _refused() -> Iterator[str]:
    """Yields the lines of a table of all refusals: a feature, those that it does not go with, and why."""
    by_reason: dict[str, list[frozenset[str]]] = {}
    for pair, (reason, _) in REFUSED.items():
        by_reason.setdefault(reason, []).append(pair)
    rows: dict[tuple[str, str], list[str]] = {}  # what is not gone with and why -> features
    for reason, pairs in by_reason.items():
        left = list(pairs)
        while left:  # the feature that most of the pairs have comes first
            count = {key: sum(key in pair for pair in left) for key in FEATURES}
            common = max(FEATURES, key=lambda key: (count[key], key in OPTIONS))
            others = [FEATURES[key].name for key in FEATURES if key != common and frozenset((common, key)) in left]
            left = [pair for pair in left if common not in pair]
            rows.setdefault((", ".join(others), reason), []).append(FEATURES[common].name)
    yield "| feature | does not go with | because |"
    yield "| --- | --- | --- |"
    for (others, reason), features in sorted(rows.items(), key=lambda row: row[1] != ["soft prompts"]):
        yield f"| {', '.join(features)} | {others} | {reason} |"


def _pairs() -> Iterator[frozenset[str]]:
    return (frozenset(pair) for pair in itertools.combinations(FEATURES, 2) if not exclusive(*pair))


def _short(key: str) -> str:
    return FEATURES[key].name


def _cell(a: str, b: str, reasons: dict[str, int]) -> str:
    if a == b or exclusive(a, b):
        return "–"
    refusal = REFUSED.get(frozenset((a, b)))
    return str(reasons.setdefault(refusal[0], len(reasons) + 1)) if refusal else "✓"


_NOTES = """## Packing, sliding windows, and more

- **Packing and sliding windows** go together. A window counts positions inside an example, never
  across the examples of a row, so a packed row computes what single rows compute.
- **Adapters in folders while training** need a base that PEFT can load: a hub id, or a folder in
  Hugging Face layout.
- **A benchmark while training** is asked on one host only, and not if it runs code.
- **QLoRA** needs the extra `quant`. Soft prompts also go with the objective `choice`.
- **Families of models** and what each lacks: [Models](../models.md).
- **What the server takes** of OpenAI's protocol: [Serving](../serving.md).
"""
