"""Put a model on the Hugging Face hub.

  smallr push --model=RUN --repo=OWNER/NAME [--private] [--revision=BRANCH]
  smallr push --model=LORA_RUN --repo=OWNER/NAME --adapter_only --base=OWNER/BASE

RUN is whatever smallr convert takes; it is exported as there, to a folder that is removed afterwards. A folder that
smallr convert has written is uploaded as it is. Log in first (`hf auth login`), or set HF_TOKEN. Whether the repository
may be written to is found out before anything is loaded.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path

from smallr.cli.convert import export, export_flags, export_options
from smallr.cli.inputs import check, check_model
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from smallr.core.files import read_json

_WEIGHTS = ("config.json", "adapter_config.json")


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("model", None, "run, checkpoint, folder, or any model that training takes", required=True)
    parser.flag("repo", None, "OWNER/NAME; it is made if it is not there", required=True)
    parser.flag("private", False, "that nobody else can read it")
    parser.flag("revision", "", "branch, made if it is not there; main if it is not given")
    parser.flag("message", "", "of the commit; what is uploaded if it is not given")
    export_flags(parser)


def run(options: Namespace) -> None:
    """Exports the model and uploads it, and says where it is."""
    from smallr.models.hub import open_repo

    path = Path(options.model).expanduser()
    message = options.message or f"Upload {path.name}"
    if is_export(path):
        check_export(path, options)
        repo = open_repo(options.repo, private=options.private, revision=options.revision)
        print(repo.upload(path, message))
        return
    check("--model", check_model, options.model)
    repo = open_repo(options.repo, private=options.private, revision=options.revision)
    if options.adapter_only:
        check_base(path, options.base)
    with tempfile.TemporaryDirectory(prefix="smallr-push-") as folder:
        target = Path(folder) / "model"
        export(options.model, target, options, title=options.repo.partition("/")[2])
        print(repo.upload(target, message))


def check_base(path: Path, base: str) -> None:
    """Raises UserError where the adapters of a run have a base that is not on the hub, so that nobody could use them."""
    from smallr.models.names import is_hub_id
    from smallr.training.saved import run_config

    config = run_config(path)
    name = base or (config["model"] if config else "")
    if not config or "lora" not in config or (is_hub_id(name) and not Path(name).expanduser().exists()):
        return
    raise UserError(
        f"the adapters' base {name} is not on the hub: put it there (smallr push --model={name} --repo=OWNER/BASE), and "
        "add --base=OWNER/BASE"
    )


def is_export(path: Path) -> bool:
    """Returns whether a folder is a model or an adapter as `smallr convert` writes them."""
    return any((path / name).is_file() for name in _WEIGHTS) and bool(list(path.glob("*.safetensors")))


def check_export(folder: Path, options: Namespace) -> None:
    """Raises UserError where a folder cannot be uploaded as it is, or not as the flags say."""
    asked = [name for name in export_options(options) if name in options.given]
    if asked:
        raise UserError(f"--{asked[0]}: {folder} is exported already, and is uploaded as it is; leave the flag out")
    path = folder / "adapter_config.json"
    base = str(read_json(path).get("base_model_name_or_path")) if path.is_file() else ""
    if Path(base).is_absolute():
        raise UserError(
            f"{path}: base_model_name_or_path is {base}, which nobody else has: put the base on the hub "
            f"(smallr push --model={base} --repo=OWNER/BASE) and name it there"
        )
