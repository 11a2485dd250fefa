"""Finds the command, reads its flags and runs it; the one place where an error of a user becomes one line.

A command is a module whose docstring is its help, with two functions: `flags(parser)` and `run(options)`, which returns
an exit code or nothing. Its module imports nothing heavy: flags and configs are checked before JAX is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Sequence

from absl import logging

from smallr import __version__
from smallr.cli.parsing import Parser, UsageError
from smallr.core.cache import cache_dir
from smallr.core.errors import UserError
from smallr.data.errors import nearest

# name -> (module, what it does), in the order of the help.
COMMANDS = {
    "train": ("smallr.train", "train a model, or go on with a run"),
    "sweep": ("smallr.cli.sweep", "train with every combination of some fields' values, and name the best"),
    "preview": ("smallr.cli.preview", "show rows as a run would see them: rendered, tokenised, packed"),
    "fit": ("smallr.cli.fit", "say what fits the memory of a device: rows, remat, GiB"),
    "configs": ("smallr.cli.configs", "list the configs, or show the fields of one"),
    "generate": ("smallr.cli.generate", "write with a model"),
    "serve": ("smallr.cli.serve", "serve a model in OpenAI's protocol"),
    "evaluate": ("smallr.cli.evaluate", "ask a benchmark"),
    "compare": ("smallr.cli.compare", "compare two evaluations, question by question"),
    "calibrate": ("smallr.cli.calibrate", "make confidences of a model mean what they say, from an evaluation"),
    "lm-eval": ("smallr.cli.lm_eval", "run lm-evaluation-harness on a model"),
    "convert": ("smallr.cli.convert", "export a run or a model for transformers, vLLM, llama.cpp, PEFT"),
    "push": ("smallr.cli.push", "put a run or a model on the Hugging Face hub"),
    "scratch": ("smallr.cli.scratch", "write a new model with random weights"),
    "crv": ("smallr.cli.crv", "fit a teacher's rationales to a student (critique, rethink, verify)"),
    "collate": ("smallr.cli.collate", "small models that teach each other by the likelihood of the answer"),
    "pairs": ("smallr.cli.pairs", "make preference pairs of a CRV run"),
    "plan": ("smallr.cli.plan", "pick the best of several queries: one question, or a benchmark"),
    "decompose": ("smallr.cli.decompose", "sub-questions of problems by a teacher; measure those of a student"),
    "review": ("smallr.cli.review", "check what machines wrote, in the browser: accept, reject, edit"),
    "labels": ("smallr.cli.labels", "label questions: answer first, or think first"),
    "score": ("smallr.cli.score", "score rows under a model"),
    "builtin": ("smallr.cli.builtin", "write the built-in data sets"),
    "doctor": ("smallr.cli.doctor", "check a machine: versions, speed, kernels, a training step"),
    "report": ("smallr.cli.report", "write a page on runs: curves, tables, samples"),
    "stages": ("smallr.cli.stages", "show the stages of a job"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code: 1 for an error that the message explains, 2 for wrong usage."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    with contextlib.suppress(AttributeError):  # text that a terminal cannot show, such as half an emoji, ends nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if name in ("--help", "-h", "help"):
            print(overview())
            return 0
        if name == "--version":
            print(f"smallr {__version__}")
            return 0
        if name not in COMMANDS:
            raise UsageError(f"no command {name!r}{nearest(name, COMMANDS)} (smallr --help lists them)")
        code = run(name, rest)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"smallr: {error}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"smallr: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        print("smallr: stopped", file=sys.stderr)
        return 130


def run(name: str, argv: Sequence[str]) -> int:
    """Reads the flags of a command and runs it."""
    command = importlib.import_module(COMMANDS[name][0])
    parser = Parser(name, command.__doc__ or "")
    command.flags(parser)
    if parser.passes_on:
        return command.run(list(argv)) or 0
    options = parser.parse(argv)
    if options is None:  # it was asked for help, and has printed it
        return 0
    options.command = shlex.join(["smallr", name, *argv])
    logging.set_verbosity(logging.WARNING)
    # Read by JAX when it is imported, and by the processes that a command starts.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir("compiled")))
    return command.run(options) or 0


def overview() -> str:
    """Returns the help of `smallr` itself."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        (
            "smallr: train small reasoning language models from teacher rationales",
            "",
            "usage: smallr COMMAND …        a first run: smallr train cogpo:smoke",
            "",
            *lines,
            "",
            "smallr COMMAND --help shows the flags of a command; flags are written --flag=value.",
            "smallr train CONFIG --help shows every field of a config, set by --config.FIELD=VALUE.",
        )
    )
