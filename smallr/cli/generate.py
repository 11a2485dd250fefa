"""Write with a model: python -m smallr.cli.generate --model=NAME --prompts=FILE [--out=FILE.jsonl], or --interactive

NAME is anything that config.model takes, a run's workdir, one of its checkpoints, or an adapter in PEFT's format.
FILE is text with a prompt a line, JSON lines with `prompt` or `messages`, or - for standard input. Plain prompts are
messages of a user, if the model has a chat template; --chat=false continues them as they are.

With --adaptive=FOLDER, a run of configs/adaptive/router.py or prompts.py or its export, each prompt is a question
that the student answers first or thinks about first; every line of the output says which.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags, logging

from smallr.core.errors import UserError
from smallr.core.programs import keep_programs

MODEL = flags.DEFINE_string("model", None, "Model, run, checkpoint or adapter; with --adaptive by default its own")
PROMPTS = flags.DEFINE_string("prompts", None, "File of prompts, or - for standard input")
OUT = flags.DEFINE_string("out", None, "File of JSON lines to write; standard output if it is not given")
INTERACTIVE = flags.DEFINE_bool("interactive", False, "Talk at the terminal; /reset forgets, /exit ends")
CHAT = flags.DEFINE_bool("chat", None, "Plain prompts are messages of a user; by default if there is a chat template")
SLOTS = flags.DEFINE_integer("slots", 32, "Completions written at once", lower_bound=1)
MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Tokens of prompt and completion; the model's context, at most 4096"
)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the computation")
STOP = flags.DEFINE_multi_string("stop", [], "A completion ends before this text; may be repeated")
ADAPTIVE = flags.DEFINE_string("adaptive", None, "Run or folder of an adaptive module")
ADAPTIVE_MODE = flags.DEFINE_enum(
    "adaptive_mode", "auto", ["auto", "answer", "think", "random"], "auto asks the module; the others do not"
)
SHARE = flags.DEFINE_float("share", 0.5, "Of questions thought about first, with --adaptive_mode=random", 0.0, 1.0)
THRESHOLD = flags.DEFINE_float("threshold", None, "Score above which the student thinks; by default the module's")
EARLY_STOP = flags.DEFINE_bool("early_stop", True, "Stop after an answer that comes first, without its rationale")
PARAMS = {
    "max_tokens": flags.DEFINE_integer("max_tokens", 256, "Longest completion"),
    "temperature": flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token"),
    "top_k": flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest; 0 is all"),
    "top_p": flags.DEFINE_float("top_p", 1.0, "Draw from the fewest likeliest that hold this share"),
    "min_p": flags.DEFINE_float("min_p", 0.0, "Draw from those at least so likely, relative to the likeliest"),
    "n": flags.DEFINE_integer("n", 1, "Completions of each prompt"),
    "ignore_eos": flags.DEFINE_bool("ignore_eos", False, "Write on behind the end token"),
    "seed": flags.DEFINE_integer("seed", None, "Of the draws; by default each prompt has its own"),
    "round": flags.DEFINE_integer("round", 0, "Of sampling the same prompts; another one draws anew"),
    "logprobs": flags.DEFINE_integer("logprobs", None, "Log-probs of the tokens, and of this many likeliest ones"),
}


def main(argv: list[str]) -> None:
    """Opens the model and runs the engine; errors of the user's making are one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    try:
        run()
    except UserError as error:
        sys.exit(f"smallr: {error}")


def run() -> None:
    """The command, with its flags checked."""
    from smallr.language.loading import load_engine  # after the cache is set
    from smallr.sampling.chat import converse
    from smallr.sampling.files import as_requests, read_prompts, write_results
    from smallr.sampling.requests import SamplingParams

    if bool(PROMPTS.value) == INTERACTIVE.value:
        raise UserError("give either --prompts=FILE or --interactive")
    if ADAPTIVE.value:
        return run_adaptive()
    if not MODEL.value:
        raise UserError("give --model=NAME, or --adaptive=FOLDER")
    try:
        params = SamplingParams(**{name: flag.value for name, flag in PARAMS.items()} | {"stop": tuple(STOP.value)})
    except ValueError as error:
        raise UserError(str(error)) from error
    prompts = [] if INTERACTIVE.value else read_prompts(PROMPTS.value)
    if OUT.value and not Path(OUT.value).absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {Path(OUT.value).absolute().parent}")
    slots = 1 if INTERACTIVE.value else SLOTS.value
    engine = load_engine(MODEL.value, dtype=DTYPE.value, slots=slots, max_length=MAX_LENGTH.value).engine
    chat = bool(engine.tokenizer.chat_template) if CHAT.value is None else CHAT.value
    if INTERACTIVE.value:
        return converse(engine, params, chat=chat)
    requests = as_requests(prompts, params, chat=chat)
    results = engine.generate(requests)
    with Path(OUT.value).open("w", encoding="utf-8") if OUT.value else contextlib.nullcontext(sys.stdout) as out:
        write_results(requests, results, out)
    if failed := [(number, result.error) for number, result in enumerate(results, 1) if result.error]:
        number, error = failed[0]
        logging.warning(
            "%s: %d of %d prompts have an error instead of a completion; the first is prompt %d: %s",
            *(PROMPTS.value, len(failed), len(results), number, error),
        )


def run_adaptive() -> None:
    """Answers the questions of a file, each in its mode."""
    from smallr.methods.adaptive.asking import ask, write_answers
    from smallr.methods.adaptive.opening import open_adaptive
    from smallr.sampling.files import read_questions

    if INTERACTIVE.value or CHAT.value is not None or STOP.value:
        raise UserError("--adaptive: --interactive, --chat and --stop have no effect; the module's formats say it all")
    names = ("max_tokens", "temperature", "seed")
    if changed := [name for name, flag in PARAMS.items() if name not in names and flag.value != flag.default]:
        raise UserError(f"--adaptive: --{changed[0]} has no effect; of the draws there are --{', --'.join(names)}")
    questions = read_questions(PROMPTS.value)
    module = open_adaptive(
        ADAPTIVE.value, model=MODEL.value or "", dtype=DTYPE.value, slots=SLOTS.value, max_length=MAX_LENGTH.value
    )
    if THRESHOLD.value is not None:
        module.threshold = THRESHOLD.value
    options = {name: PARAMS[name].value for name in names}
    decided, answers = ask(
        module, questions, mode=ADAPTIVE_MODE.value, share=SHARE.value, early_stop=EARLY_STOP.value, **options
    )
    with Path(OUT.value).open("w", encoding="utf-8") if OUT.value else contextlib.nullcontext(sys.stdout) as out:
        write_answers(questions, decided, answers, out)


if __name__ == "__main__":
    app.run(main)
