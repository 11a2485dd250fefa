"""Write with a model.

  smallr generate --model=NAME "What is 12 + 30?"
  smallr generate --model=NAME --prompts=FILE [--out=FILE.jsonl]
  smallr generate --model=NAME --interactive

NAME is anything that config.model takes, a run's workdir, one of its checkpoints, or an adapter in PEFT's format.
FILE is text with a prompt a line, JSON lines with `prompt`, `question` or `messages`, or - for standard input. Plain
prompts are messages of a user, if the model has a chat template; --chat=false continues them as they are. A terminal
gets text; a file or a pipe gets JSON lines.

With --advantage=RUN, a run of objective ilql, tokens are scored by log pi + beta (Q - V): pi is --model, by default the
policy that the run began from, and Q and V are what the run has learned. --beta=0 is the policy itself.

With --adaptive=FOLDER, a run of configs/adaptive/router.py or prompts.py or its export, each prompt is a question
that the student answers first or thinks about first; every line of the output says which.

With --confidence, or a calibration in the model's folder (smallr calibrate), every completion carries how sure the
model is; with --abstain_below=0.7 what is less sure is marked, and on a terminal withheld.
"""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from absl import logging

from smallr.cli import trust
from smallr.cli.inputs import announce, check, check_model
from smallr.cli.parsing import Parser, UsageError
from smallr.core.errors import UserError
from smallr.core.files import whole_file
from smallr.core.locks import output_lock

if TYPE_CHECKING:
    from smallr.language.trust import Rater
    from smallr.sampling.engine import Engine
    from smallr.sampling.files import Prompt
    from smallr.sampling.requests import Request

_PARAMS = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "n", "ignore_eos", "seed", "round", "logprobs")
_ADAPTIVE_PARAMS = ("max_tokens", "temperature", "seed")


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.argument("prompt", "what to ask or continue", count="?")
    parser.flag("model", None, "model, run, checkpoint or adapter; --adaptive and --advantage have their own")
    parser.flag("prompts", None, "file of prompts, or - for standard input")
    parser.flag("out", None, "file of JSON lines to write; standard output if it is not given")
    parser.flag("format", "auto", "of standard output; auto: text on a terminal", choices=("auto", "text", "json"))
    parser.flag("interactive", False, "talk at the terminal; /reset forgets, /exit ends")
    parser.flag("chat", None, "prompts are messages of a user; by default if there is a chat template", type=bool)
    parser.flag("decode_slots", 32, "completions written at once", low=1)
    parser.flag("max_length", None, "tokens of prompt and completion; the model's context, at most 4096", type=int)
    parser.flag("date", "2024-07-26", "that a chat template writes where it writes today's")
    parser.flag("dtype", "bfloat16", "of the computation", choices=("bfloat16", "float32"))
    parser.flag(
        "lookup", 0, "tokens of a greedy completion looked up in its text and verified at once; 0 is none", low=0
    )
    parser.flag("stop", [], "a completion ends before this text; may be repeated", many=True)
    parser.flag("max_tokens", 256, "longest completion")
    parser.flag("temperature", 0.0, "0 takes the likeliest token")
    parser.flag("top_k", 0, "draw from the k likeliest; 0 is all")
    parser.flag("top_p", 1.0, "draw from the fewest likeliest that hold this share")
    parser.flag("min_p", 0.0, "draw from those at least so likely, relative to the likeliest")
    parser.flag("n", 1, "completions of each prompt")
    parser.flag("ignore_eos", False, "write on behind the end token")
    parser.flag("seed", None, "of the draws; by default each prompt has its own", type=int)
    parser.flag("round", 0, "of sampling the same prompts; another one draws anew")
    parser.flag("logprobs", None, "log-probs of the tokens, and of this many likeliest ones", type=int)
    parser.flag("advantage", None, "run with Q heads, whose advantages steer the model")
    parser.flag("beta", 1.0, "nats that an advantage of 1 is worth, with --advantage", low=0.0)
    parser.flag("adaptive", None, "run or folder of an adaptive module")
    modes = ("auto", "answer", "think", "random", "unsure")
    about = "auto asks the module; the others do not: unsure answers, and thinks where it is not sure of that answer"
    parser.flag("adaptive_mode", "auto", about, choices=modes)
    parser.flag("share", 0.5, "of questions thought about first, with --adaptive_mode=random", low=0.0, high=1.0)
    parser.flag(
        "threshold",
        None,
        "score above which the student thinks; by default the module's, unsure: ln 2, a confidence of 0.5",
        type=float,
    )
    trust.flags(parser)
    parser.flag("abstain_below", None, "confidence below which there is no answer", type=float, low=0, high=1)
    parser.flag("early_stop", True, "stop after an answer that comes first, without its rationale")


def run(options: Namespace) -> None:
    """Opens the model and runs the engine; prompts are read before the model is opened."""
    if (options.prompt is not None) + bool(options.prompts) + options.interactive != 1:
        raise UsageError(
            'generate: give a prompt, --prompts=FILE or --interactive, e.g. smallr generate "Who are you?"'
        )
    if not (options.model or options.adaptive or options.advantage):
        raise UsageError("generate: give --model=NAME, --adaptive=FOLDER or --advantage=RUN")
    if options.advantage and options.adaptive:
        raise UserError("--advantage: it does not go with --adaptive, whose module says how it writes")
    if "beta" in options.given and not options.advantage:
        raise UserError("--beta: it has no effect without --advantage=RUN")
    if options.lookup and (options.advantage or options.adaptive):
        raise UserError("--lookup: it has no effect with --advantage and --adaptive")
    if (options.interactive or options.adaptive) and (named := trust.named(options, "abstain_below")):
        raise UserError(f"--{named}: it has no effect with --interactive and --adaptive")
    if options.model:
        check("--model", check_model, options.model)
    if options.prompts and options.prompts != "-" and not Path(options.prompts).is_file():
        raise UserError(f"--prompts: there is no file {options.prompts}")
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {Path(options.out).absolute().parent}")
    with output_lock(Path(options.out)) if options.out else contextlib.nullcontext():
        announce(f"loading JAX, then {options.model or options.adaptive or options.advantage} …")
        _generate(options)


def _generate(options: Namespace) -> None:
    from smallr.core.programs import keep_programs
    from smallr.sampling.chat import converse
    from smallr.sampling.files import as_requests
    from smallr.sampling.requests import SamplingParams

    keep_programs()
    if options.adaptive:
        return _adaptive(options)
    try:
        params = SamplingParams(**{name: getattr(options, name) for name in _PARAMS}, stop=tuple(options.stop))
    except ValueError as error:
        raise UserError(str(error)) from error
    rater, end = (None, None) if options.interactive else trust.make_rater(options, "abstain_below")
    prompts = [] if options.interactive else _prompts(options)
    decode_slots = 1 if options.interactive else min(options.decode_slots, max(1, len(prompts) * params.n))

    from smallr.language.loading import load_engine

    engine = load_engine(
        options.model or "",
        dtype=options.dtype,
        decode_slots=decode_slots,
        max_length=options.max_length,
        date=options.date,
        advantage=options.advantage or "",
        beta=options.beta,
        is_identified=False,
        lookup=options.lookup,
    ).engine
    chat = bool(engine.tokenizer.chat_template) if options.chat is None else options.chat
    if options.interactive:
        return converse(engine, params, chat=chat)
    places, texts = [place for place, _ in prompts], [prompt for _, prompt in prompts]
    try:
        _write(places, as_requests(texts, params, chat=chat), engine, options, rater)
    finally:
        end()


def _prompts(options: Namespace) -> list[tuple[str, Prompt]]:
    """Reads (where it stands, prompt) of each."""
    from smallr.sampling.files import read_prompts

    return [("", options.prompt)] if options.prompt is not None else read_prompts(options.prompts)


def _write(places: list[str], requests: list[Request], engine: Engine, options: Namespace, rater: Rater | None) -> None:
    """Writes the results; the error of one says where its prompt stands."""
    from smallr.sampling.files import write_results, write_texts

    as_text = options.format == "text" or (options.format == "auto" and not options.out and sys.stdout.isatty())
    asked = [rater.asking(request) for request in requests] if rater else requests
    results = engine.generate(asked)
    extra = trust.rated(rater, asked, results, engine.generate, options.abstain_below) if rater else []
    results = [
        replace(result, error=f"{place}: {result.error}") if result.error and place else result
        for place, result in zip(places, results, strict=True)
    ]
    if rater and options.logprobs is None:
        results = [replace(r, samples=tuple(replace(s, logprobs=None) for s in r.samples)) for r in results]
    with _output(options) as out:
        if as_text:
            shown = trust.marked(results, extra, options.abstain_below) if rater else results
            write_texts(requests, shown, out)
        else:
            write_results(requests, results, out, extra)
    if failed := [result.error for result in results if result.error]:
        count = f"{len(failed)} of {len(results)} prompts have an error instead of a completion"
        logging.warning("%s; the first: %s", count, failed[0])


def _output(options: Namespace) -> contextlib.AbstractContextManager[TextIO]:
    if not options.out:
        return contextlib.nullcontext(sys.stdout)
    path = Path(options.out)
    is_device = path.exists() and not (path.is_file() or path.is_dir())  # a pipe, /dev/null: nothing to rename there
    return path.open("w", encoding="utf-8") if is_device else whole_file(path)


def _adaptive(options: Namespace) -> None:
    """Answers the questions, each in its mode."""
    from smallr.methods.adaptive.asking import ask, write_answers
    from smallr.methods.adaptive.modules import Unsure
    from smallr.methods.adaptive.opening import open_adaptive
    from smallr.sampling.files import read_questions

    if options.interactive or options.chat is not None or options.stop:
        raise UserError("--adaptive: --interactive, --chat and --stop have no effect; the module's formats say it all")
    if given := [name for name in _PARAMS if name not in _ADAPTIVE_PARAMS and name in options.given]:
        raise UserError(
            f"--adaptive: --{given[0]} has no effect; of the draws there are --{', --'.join(_ADAPTIVE_PARAMS)}"
        )
    questions = [options.prompt] if options.prompt is not None else read_questions(options.prompts)
    module = open_adaptive(
        options.adaptive,
        model=options.model or "",
        dtype=options.dtype,
        decode_slots=options.decode_slots,
        max_length=options.max_length,
    )
    mode = options.adaptive_mode
    if mode == "unsure":
        module, mode = Unsure(module.student, max_tokens=options.max_tokens), "auto"
    if options.threshold is not None:
        module.threshold = options.threshold
    draws = {name: getattr(options, name) for name in _ADAPTIVE_PARAMS}
    decided, answers = ask(module, questions, mode=mode, share=options.share, early_stop=options.early_stop, **draws)
    with _output(options) as out:
        write_answers(questions, decided, answers, out)
