"""What the pages quote exists: commands, fields, configs, messages and the options of TRL."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate import PAGES
from docs.site import reference
from smallr.cli import config_files, fields
from smallr.cli.main import COMMANDS
from smallr.cli.parsing import Parser, _split, _underscored
from smallr.config import add_lora, base
from smallr.losses.preference.registry import LOSSES, RECIPES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of the `smallr` command lines in the code blocks of a page."""
    for block in re.findall(r"^ *```(?:\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("smallr ") and "…" not in line and "[" not in line.partition("'")[0]:
                yield shlex.split(line.partition(" > ")[0], comments=True)[1:]


@functools.cache
def parser_of(name: str) -> Parser:
    """The flags of a command."""
    command = importlib.import_module(COMMANDS[name][0])
    parser = Parser(name, command.__doc__ or "")
    command.flags(parser)
    return parser


def check_command(words: list[str]) -> None:
    """Reads a command line as `smallr` would, without running it."""
    name, *argv = words
    assert name in COMMANDS, f"no command {name}"
    parser = parser_of(name)
    if parser.passes_on or "--help" in argv:
        return
    rest, overrides = _split([_underscored(word) for word in argv])
    options, unknown = parser._parser.parse_known_args(rest)
    assert not unknown, f"{unknown} in {words}"
    named = getattr(options, "config_name", None) or getattr(options, "config", None)
    if overrides and named and not named.endswith(".py") and not named.isupper():
        config, _ = config_files.load(named, parser._group)
        if getattr(options, "lora", False):
            config = fields.with_lora(config)
        for path, text in overrides:
            if "{" not in path:  # a shell writes out {a,b}
                fields.set_field(config, path, text)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_commands_on_a_page_can_be_read(page):
    for words in command_lines(page.read_text()):
        wrong_on_purpose = page.name == "command_line.md" and any(word.startswith("--config.lr") for word in words)
        if not wrong_on_purpose:
            check_command(words)


def test_fields_on_the_page_of_trl_exist():
    known = {
        path
        for name in ("dpo", "kto", "preference:discopop", "sft")
        for path, _ in fields.flat(config_files.load(name)[0])
    }
    known |= {path for path, _ in fields.flat(add_lora(base()))}
    named = re.findall(
        r"`((?:batch|data|optimizer|objective|compute|checkpoint|lora|mesh)\.[a-z_.]+)", page_of("coming_from_trl")
    )
    assert len(named) > 40
    assert set(named) <= known


def page_of(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


@pytest.mark.parametrize("trainer", ["dpo", "sft", "kto", "base"])
def test_every_option_of_trl_is_on_its_page(trainer):
    found = importlib.util.find_spec("trl")
    if found is None:
        pytest.skip("trl is not installed (extra `test`)")
    source = (Path(found.origin).parent / "trainer" / f"{trainer}_config.py").read_text()
    (config,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    options = [node.target.id for node in config.body if isinstance(node, ast.AnnAssign)]
    page = page_of("coming_from_trl")
    assert options
    assert [option for option in options if f"`{option}`" not in page] == []


@functools.cache
def literals() -> list[str]:
    """The texts of modules that raise errors, one line each, `…` for what is put into them."""
    found = []
    for path in (ROOT / "smallr").rglob("*.py"):
        source = path.read_text()
        if "Error(" not in source and "refus" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [text.replace("`", "'") for text in found if " " in text]


def is_quoted_from_the_source(message: str) -> bool:
    """Whether one text of the package has the parts of the message, in their order."""
    return any(_has_in_order(text, [part for part in message.split("…") if part]) for text in literals())


def _has_in_order(text: str, parts: list[str]) -> bool:
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_messages_on_the_troubleshooting_page_are_those_of_the_source():
    messages = re.findall(r"^### `(.+)`$", page_of("troubleshooting"), re.MULTILINE)
    # One of XLA, one that is put together from two texts.
    elsewhere = {"RESOURCE_EXHAUSTED", "dropped, … longer than … tokens"}
    assert len(messages) > 30
    assert [
        message for message in messages if message not in elsewhere and not is_quoted_from_the_source(message)
    ] == []


def drop_reasons() -> Iterator[str]:
    """How each reason begins for which the reader of rows leaves one out."""
    for path in (ROOT / "smallr" / "data").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("Unusable", "Unrenderable"):
                text = call.args[0].values[0] if isinstance(call.args[0], ast.JoinedStr) else call.args[0]
                if isinstance(text, ast.Constant):
                    yield text.value


def test_every_reason_for_which_a_row_is_left_out_is_on_the_page_of_data():
    section = page_of("data").partition("## Why a row is left out")[2].partition("\n## ")[0]
    named = [
        part.partition("…")[0].strip()
        for match in re.findall(r"`` (.+?) ``|`([^`|]+)`", section)
        for part in match
        if part
    ]
    reasons = list(drop_reasons())
    assert len(reasons) > 20
    assert [
        reason for reason in reasons if not any(reason.startswith(n) or n.startswith(reason) for n in named if n)
    ] == []


def test_a_message_that_nobody_writes_is_found_out():
    assert not is_quoted_from_the_source("config.…: there is no such thing as …")


def test_papers_name_configs_and_losses_that_exist():
    named = re.findall(r"^\| [^|]*arxiv[^|]*\| ([^|]*) \|", page_of("papers"), re.MULTILINE)
    known = {
        *config_files.names(),
        *LOSSES,
        *RECIPES,
        "smallr.config.ilql()",
        "smallr.config.add_soft_prompts",
        "--lora",
    }
    known |= {"objective." + name for name in ("divergence", "ld_alpha", "weighting=wpo", "sync_every")}
    known |= {"sync_mixing", "lora.rslora", "lora.base=nf4", "label_smoothing"}
    names = {name for cell in named for name in re.findall(r"`([^`]+)`", cell)}
    assert len(names) > 40
    assert names <= known


def test_generated_pages_are_what_the_tree_says():
    pages = {path: make() for path, make in PAGES.items()}
    configs = pages["reference/configs.md"]
    for name in config_files.names():
        assert f"`{name}`:" in configs
    for path, value, meaning in fields.described(base()):
        if not hasattr(value, "keys"):
            group, _, field = path.rpartition(".")
            own = f"| `{path}` |" if meaning else f"| `{group}.…` |"  # without a meaning: in the line of the group
            (line,) = [line for line in configs.splitlines() if line.startswith(own)][:1]
            assert reference._cell(meaning) in line
            assert f"`{field}`" in line or meaning
    assert not re.findall(r"^\| `[^|]*\|[^|]*\| *\|$", configs, re.MULTILINE)  # every field has a meaning
    losses = pages["reference/losses.md"]
    free = losses.partition("**Without a reference:**")[2].partition(" among")[0]
    for name, loss in LOSSES.items():
        assert f"| `{name}` |" in losses or loss.given
        assert (f"`{name}`" in free) == (not loss.reference)
    assert set(re.findall(r"`(\w+)`", free)) <= {*LOSSES, *RECIPES}
    assert set(reference.recipe_sources()) == set(RECIPES) - {"dpo"}
    for name in COMMANDS:
        assert f"\n## {name}\n" in pages["reference/commands.md"]
    assert "[arXiv 2305.18290](https://arxiv.org/abs/2305.18290)" in losses
