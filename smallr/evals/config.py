"""Defines the config tree of an evaluation: every field, its default and its meaning.

A file in `configs/eval/` starts from `base(NAME)`. Configs are locked: a field that does not exist is an error that names
the nearest one.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from smallr.evals.benchmarks import find
from smallr.evals.benchmarks.base import Generation

READING = "Somebody reasons as follows:\n\n{rationale}\n\nWhich answer does this reasoning lead to? Reply with that answer alone."


def base(benchmark: str) -> ConfigDict:
    """Returns fields of an evaluation on one benchmark, locked.

    Raises:
      UserError: no such benchmark; the message lists all.
    """
    entry = find(benchmark)
    config = ConfigDict()
    config.benchmark = benchmark  # its name
    # A run's workdir or checkpoint, a folder in Hugging Face layout, a .gguf file, a built-in name, a hub id; to answer
    # in text also http(s)://HOST/v1#MODEL.
    config.model = "smollm2-135m-instruct"
    config.data = ""  # a file, folder or hub id of rows; empty: the benchmark's own on the hub
    config.split = ""  # of the data, or a part of it as in test[:100]; empty: the benchmark's own
    config.limit = 0  # questions, from the first; 0: all
    config.shots = ConfigDict()  # worked examples before each question
    config.shots.count = 0  # examples
    config.shots.data = ""  # a file, folder or hub id of rows in the benchmark's columns; empty: its own on the hub
    config.shots.split = ""  # of that; empty: train
    _add_difficulty(config)
    config.compute = ConfigDict()  # of a local model
    config.compute.dtype = "bfloat16"  # float32 | bfloat16
    config.compute.max_length = 0  # tokens of prompt and completion together; 0: the model's context, within reason
    config.confidence = ConfigDict()  # how sure the model is of each answer, and whether that means anything
    # A file or folder of `smallr calibrate`; empty: the one in the model's own folder, if there is one; none: not even that.
    config.confidence.calibration = ""
    if not isinstance(entry, Generation):
        config.confidence.measure = "choice"  # choice: the chosen option's share of the options' probability
        config.compute.tokens_per_batch = 8192  # rows times their padded length
        config.lock()
        return config

    # answer: of the answer's own tokens, length-normalised | answer_joint: their joint probability | majority: share of the
    # samples with the same answer | p_true: the model's own verdict, asked for; empty: the calibration's, else none.
    config.confidence.measure = ""
    config.compute.decode_slots = 32  # sequences decoded at once
    config.chat = True  # questions are messages of a user; else plain text
    config.seed = 0  # of draws
    config.cache = True  # keep the model's answers in smallr's cache, and take from there what was asked before
    config.sampling = ConfigDict()
    config.sampling.n = 1  # samples of each question
    config.sampling.temperature = 0.0  # 0: greedy
    config.sampling.top_p = 1.0  # draw from the fewest likeliest tokens that hold this share
    config.sampling.top_k = 0  # draw from the k likeliest tokens; 0: all
    config.sampling.min_p = 0.0  # draw from tokens at least so likely, relative to the likeliest
    config.sampling.max_tokens = entry.max_tokens  # of an answer
    config.sampling.stop = ()  # texts before which an answer ends
    _add_agreement_and_cost(config)
    _add_grader_and_server(config)
    config.lock()
    return config


def _add_difficulty(config: ConfigDict) -> None:
    config.difficulty = ConfigDict()  # of the questions: accuracy, tokens and gain by bins of it
    # nll: of the gold rationale or answer under a base model | steps: of the gold rationale | level: the benchmark's own |
    # score: of a column; empty: no bins.
    config.difficulty.measure = ""
    config.difficulty.base = ""  # the model of nll, as config.model but no server
    config.difficulty.column = "cognitive_difficulty"  # of the rows, the score
    config.difficulty.bins = 4  # of about as many questions each; a level has a bin of its own
    config.difficulty.edges = ()  # of the bins, from the first's lower to the last's upper one, in place of their number
    config.difficulty.baseline = ""  # folder of another evaluation of this benchmark, over which the gain is reported


def _add_agreement_and_cost(config: ConfigDict) -> None:
    config.agreement = ConfigDict()  # of rationale and answer
    config.agreement.order = ""  # what an answer begins with: rationale_first | answer_first; empty: not measured
    # Between the two, such as -->; empty: an answer that comes first is the first line, and one that comes last is the last
    # box or statement.
    config.agreement.separator = ""
    # Who says what a rationale leads to: rule (the grader) | model (the one evaluated).
    config.agreement.reader = "rule"
    config.agreement.prompt = READING  # what the model is asked: {rationale}, and {question} if it is to see that too
    config.agreement.max_tokens = 32  # of its reply
    config.cost = ConfigDict()  # what an answer costs
    config.cost.prices = ConfigDict({"prompt": 0.0, "completion": 0.0})  # of a million tokens
    config.cost.per_hour = 0.0  # price of an hour of the machine that answers
    config.cost.model_bytes = 0  # of a model behind a server, which does not tell; 0: not known


def _add_grader_and_server(config: ConfigDict) -> None:
    config.grader = ConfigDict()
    config.grader.workers = 2  # processes at once
    config.grader.seconds = 0.0  # of one judgement; 0: the benchmark's own
    config.server = ConfigDict()  # of a server
    config.server.api_key_env = (
        ""  # the environment variable that holds the key; empty: as docs/language_models.md says
    )
    config.server.concurrency = 32  # requests under way at once
    config.server.max_retries = 6  # of a request
    config.server.timeout = 600.0  # seconds of one attempt
