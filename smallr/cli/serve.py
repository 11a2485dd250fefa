"""Serve a model in OpenAI's protocol.

  smallr serve --model=NAME|FOLDER|RUN [--port=8000]

Routes: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /metrics, /health, /version. Any
OpenAI client works, and so do smallr's commands that need text alone, such as

  smallr evaluate gsm8k --config.model=http://127.0.0.1:8000/v1#NAME

(without #NAME: the only model that is served). Needs the extra `serve`, and `structured` for JSON by a schema. There is
no access control: put nothing but localhost or a trusted network in --host. SIGTERM serves out what is under way and
exits with 0.

With --confidence, or a calibration in the model's folder (smallr calibrate), every choice carries `confidence`,
`agreement` and, with --escalate_below, `escalate`. --escalate_to=http(s)://HOST/v1#MODEL answers such a request by a larger
model, and `answered_by` names it. Clients that do not know these fields pass them over.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from smallr.cli import trust
from smallr.cli.inputs import announce, check, check_model
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError

if TYPE_CHECKING:
    from smallr.language.serving.metrics import Metrics
    from smallr.language.serving.trust import ServedTrust


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("model", None, "a run, or any model that training takes", required=True)
    parser.flag("served_model_name", None, "what clients call the model; default: the folder's name, or --model")
    parser.flag("host", "127.0.0.1", "address to listen at")
    parser.flag("port", 8000, "port to listen at; 0: any that is free", low=0, high=65535)
    parser.flag("decode_slots", 32, "sequences decoded at once", low=1)
    parser.flag("max_length", None, "tokens of prompt and completion; default: the context, at most 4096", type=int)
    parser.flag("max_queue", 256, "requests waiting or under way; more are refused with status 503", low=1)
    hosts = (
        "Host header that is served besides this machine's own names; may be repeated. Given, or with a --host of this"
    )
    parser.flag(
        "allowed_hosts", [], f"{hosts} machine alone, others are refused, so that a web page cannot post", many=True
    )
    parser.flag("max_body_mb", 4, "largest body of a request, in MiB", low=1)
    parser.flag("date", "2024-07-26", "that a chat template writes where it writes today's")
    parser.flag("dtype", "bfloat16", "of the computation", choices=("bfloat16", "float32"))
    trust.flags(parser)
    parser.flag("escalate_below", None, "confidence below which a reply says escalate", type=float, low=0, high=1)
    parser.flag("escalate_to", None, "server of a larger model that answers then, as http(s)://HOST/v1#MODEL")


def run(options: Namespace) -> None:
    """Loads the model and serves it."""
    check("--model", check_model, options.model)
    if options.escalate_to and options.escalate_below is None:
        raise UserError("--escalate_to: it needs --escalate_below, the confidence below which an answer is passed on")
    announce(f"loading JAX, then {options.model} …")
    try:
        from smallr.language.serving.app import make_app
        from smallr.language.serving.border import served_hosts
        from smallr.language.serving.metrics import Metrics
        from smallr.language.serving.run import bind, exit_on_sigterm, run
    except ModuleNotFoundError as error:
        raise UserError(
            f"serving needs {error.name}, which is not installed: pip install fastapi uvicorn prometheus_client"
        ) from error
    exit_on_sigterm()

    from smallr.core.programs import keep_programs
    from smallr.language.engine_thread import EngineThread
    from smallr.language.loading import load_engine

    keep_programs()
    name = options.served_model_name or served_name(options.model)
    sock = bind(options.host, options.port)
    loaded = load_engine(
        options.model,
        dtype=options.dtype,
        decode_slots=options.decode_slots,
        max_length=options.max_length,
        date=options.date,
    )
    metrics = Metrics(name)
    served_trust, close = _trust(options, metrics)
    engine = EngineThread(loaded.engine, metrics.ended)
    application = make_app(
        name,
        engine,
        max_length=loaded.engine.max_length,
        max_queue=options.max_queue,
        allowed_hosts=served_hosts(options.host, options.allowed_hosts),
        max_body_bytes=options.max_body_mb * 2**20,
        metrics=metrics,
        trust=served_trust,
    )
    run(application, sock, name)
    engine.close()
    close()


def _trust(options: Namespace, metrics: Metrics) -> tuple[ServedTrust | None, Callable[[], None]]:
    """Returns what rates the answers, if that is wanted, and what ends the processes and connections of it."""
    from smallr.language.opening import open_language_model
    from smallr.language.serving.trust import ServedTrust

    rater, end = trust.make_rater(options, "escalate_below")
    if rater is None:
        return None, end
    larger = open_language_model(options.escalate_to, cache=False) if options.escalate_to else None

    def close() -> None:
        end()
        if larger is not None:
            larger.close()

    return ServedTrust(rater, escalate_below=options.escalate_below, larger=larger, metrics=metrics), close


def served_name(model: str) -> str:
    """Returns the name of a model's folder, or of its file without the ending; other models are called as they are."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_file() else model
