"""Serve a model in OpenAI's protocol: python -m smallr.cli.serve --model=NAME|FOLDER|RUN [--port=8000]

Routes: /v1/chat/completions, /v1/completions, /v1/models, /health. Any OpenAI client works, and so does smallr itself:
--model=http://127.0.0.1:8000/v1. Needs FastAPI and uvicorn: pip install 'smallr[serve]'. There is no access control:
put nothing but localhost or a trusted network in --host. SIGTERM serves out what is under way and exits with 0.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags, logging

from smallr.core.errors import UserError
from smallr.core.programs import keep_programs

MODEL = flags.DEFINE_string("model", None, "A run, or any model that training takes", required=True)
NAME = flags.DEFINE_string("name", None, "What clients call the model; default: --model")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at")
PORT = flags.DEFINE_integer("port", 8000, "Port to listen at; 0: any that is free")
SLOTS = flags.DEFINE_integer("slots", 32, "Sequences decoded at once")
MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Tokens of prompt and completion; default: the context, at most 4096"
)
MAX_QUEUE = flags.DEFINE_integer("max_queue", 256, "Requests waiting or under way; more are refused with status 503")
ALLOWED_HOSTS = flags.DEFINE_multi_string(
    "allowed_hosts",
    [],
    "Host header that is served besides this machine's own names; may be repeated. Given, or with a "
    "--host of this machine alone, others are refused, so that a web page cannot post",
)
MAX_BODY = flags.DEFINE_integer("max_body_mb", 4, "Largest body of a request, in MiB", lower_bound=1)
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the computation: bfloat16 | float32")


def main(argv: list[str]) -> None:
    """Loads the model and serves it; errors of the user's making are one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        from smallr.language.serving.app import make_app
        from smallr.language.serving.border import served_hosts
        from smallr.language.serving.run import bind, exit_on_sigterm, run
    except ModuleNotFoundError as error:
        sys.exit(f"smallr: serving needs {error.name}, which is not installed: pip install 'smallr[serve]'")
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    exit_on_sigterm()

    from smallr.language.engine_thread import EngineThread
    from smallr.language.loading import load_engine

    try:
        sock = bind(HOST.value, PORT.value)
        loaded = load_engine(MODEL.value, dtype=DTYPE.value, slots=SLOTS.value, max_length=MAX_LENGTH.value)
    except UserError as error:
        sys.exit(f"smallr: {error}")
    engine = EngineThread(loaded.engine)
    name = NAME.value or MODEL.value
    application = make_app(
        name,
        engine,
        max_length=loaded.engine.max_length,
        max_queue=MAX_QUEUE.value,
        allowed_hosts=served_hosts(HOST.value, ALLOWED_HOSTS.value),
        max_body_bytes=MAX_BODY.value * 2**20,
    )
    run(application, sock, name)
    engine.close()


if __name__ == "__main__":
    app.run(main)
