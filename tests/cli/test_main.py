"""The front door: commands, flags and errors, without loading a model."""

from __future__ import annotations

import importlib
import re
import resource
import subprocess
import sys

import pytest

import smallr
from smallr.cli import config_files
from smallr.cli.main import COMMANDS, main
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from tests.runs import ROOT

HEAVY = ("jax", "transformers", "datasets", "numpy", "flax", "torch")


def call(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command line."""
    code = main(argv)
    found = capsys.readouterr()
    return code, found.out, found.err


def test_help_lists_all_commands(capsys):
    for argv in ((), ("--help",), ("-h",), ("help",)):
        code, out, err = call(capsys, *argv)
        assert (code, err) == (0, "")
        assert all(f"  {name} " in out for name in COMMANDS)
    assert call(capsys, "--version") == (0, f"smallr {smallr.__version__}\n", "")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "lm-eval"])
def test_every_command_explains_itself(capsys, name):
    code, out, err = call(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert importlib.import_module(COMMANDS[name][0]).__doc__.splitlines()[0] in out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("trian", 2, "no command 'trian'; did you mean 'train'?"),
        ("train", 2, "name a config, e.g. smallr train cogpo"),
        ("train --workdir=nowhere", 2, "there is no run in nowhere to go on with; name a config, e.g. smallr train"),
        ("train cogp", 1, "no config 'cogp'.*did you mean 'cogpo'"),
        ("train sft:smok", 1, "'smok' is not known"),
        ("crv annotate:smoke", 1, "annotate takes no argument"),
        ("train cogpo --config=dpo", 2, "two configs, cogpo and --config=dpo"),
        ("train cogpo dpo", 2, "unexpected argument 'dpo'"),
        ("train cogpo --config.lr=1", 1, "config.lr: no such field; did you mean optimizer.learning_rate"),
        ("train cogpo --config.optimizer.learning_rat=1", 1, "did you mean optimizer.learning_rate"),
        ("train cogpo --config.per_device_train_batch_size=8", 1, "did you mean batch.rows"),
        ("train cogpo --config.steps=four", 1, "config.steps=four: must be a whole number, like 0"),
        ("train cogpo --config.steps=1.5", 1, "must be a whole number"),
        ("train cogpo --config.optimizer.b1=x", 1, "must be a number"),
        ("train cogpo --config.data.chat=perhaps", 1, "must be true or false"),
        ("train cogpo --config.optimizer=3", 1, "is a group: set one of its fields, optimizer.b1"),
        ("train cogpo --config.steps", 1, "give a value"),
        ("train cogpo --config.lora.rank=4", 1, "add --lora"),
        ("train cogpo --lr=3", 2, "no flag --lr; did you mean --config.optimizer.learning_rate"),
        ("train cogpo --wrkdir=a", 2, "no flag --wrkdir; did you mean --workdir"),
        ("train cogpo --num_processes=two", 2, "--num_processes: 'two' must be a whole number"),
        ("score --model=a", 2, "required: --data, --out"),
        ("score --model=a --data=b --out=c --config.x=1", 2, "this command has no config"),
        ("score --model=a --data=b --out=c --columns=x", 2, "expected OURS=THEIRS"),
        ("evaluate svmp", 1, "did you mean 'svamp'"),
        ("compare a", 2, "required: B"),
        ("serve --model=a --port=99999", 2, "--port: 99999 must be at most 65535"),
        ("generate", 2, "give a prompt, --prompts=FILE or --interactive"),
        ("generate hi --prompts=a", 2, "give a prompt, --prompts=FILE or --interactive"),
        ("generate hi", 2, "give --model=NAME"),
        ("configs show", 2, "name a config"),
        ("train cogpo --config.data.train=no.jsonl", 1, "config.data.train: no.jsonl: no such file"),
        ("train cogpo --config.data.train=no/such/folder", 1, "config.data.train: data set 'no/such/folder': no such"),
        ("train cogpo --config.data.eval=builtin:arithmetic/preferenc", 1, "config.data.eval: .*did you mean"),
        ("train cogpo --config.model=no/such/model", 1, "config.model: unknown model 'no/such/model'"),
        ("train cogpo --config.model=no.gguf", 1, "config.model: model file 'no.gguf' does not exist"),
        ("train cogpo --config.tokenizer=no/such/one", 1, "config.tokenizer: 'no/such/one' is no folder here"),
        ("train cogpo --lora --config.lora.adapter=no", 1, "config.lora.adapter: there is no folder no"),
        ("preview cogpo --config.model=/no", 1, "config.model: unknown model '/no'"),
        ("generate hi --model=tiny-randm", 1, "--model: unknown model 'tiny-randm'.*the nearest is 'tiny-random'"),
        ("generate --model=tiny-random --prompts=no.txt", 1, "--prompts: there is no file no.txt"),
        ("serve --model=/no", 1, "--model: unknown model"),
        ("convert --from=/no --to=x", 1, "--from: unknown model"),
        ("score --model=/no --data=b.json --out=c", 1, "--model: unknown model"),
        ("score --model=tiny-random --data=no/*.csv --out=c", 1, r"--data: no/\*.csv: no file matches"),
        ("labels --model=tiny-random --data=no.json --out=no", 1, "--data: no.json: no such file"),
        ("crv annotate --config.data.source=no.jsonl", 1, "config.data.source: no.jsonl: no such file"),
        ("crv annotate --config.model=/no", 1, "config.model: unknown model '/no'"),
        ("evaluate gsm8k --config.model=local:/no", 1, "config.model: unknown model '/no'"),
        ("convert --from=a --to=.", 1, "exists and is not an empty folder"),
        ("convert --from=a --to=b --dtype=int8", 2, "--dtype"),
        ("push --model=a", 2, "required: --repo"),
    ],
)
def test_errors_are_one_line(capsys, argv, code, message):
    found, out, err = call(capsys, *argv.split())
    assert (found, out) == (code, "")
    assert err.startswith("smallr: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("train cogpo:smoke --workdir=runs/x", "runs/x: tiny-random on builtin:arithmetic/preference; loading JAX …"),
        ("generate hi --model=tiny-random", "loading JAX, then tiny-random …"),
        ("convert --from=tiny-random --to=x", "writing tiny-random to x; loading JAX …"),
    ],
)
def test_a_command_says_at_once_what_it_loads(capsys, monkeypatch, argv, line):
    """The line stands there before JAX is imported."""
    # What an earlier test has imported would not be imported again.
    for module in ("jax", "smallr.core.programs", "smallr.methods.adaptive.stored", "smallr.training.exporting"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("smallr.train.exit_on_sigterm", lambda: None)
    with pytest.raises(ImportError):
        main(argv.split())
    assert capsys.readouterr() == ("", f"{line}\n")


@pytest.mark.process
def test_what_is_checked_first_loads_nothing_heavy():
    """Importing the package, all commands, all configs and a wrong field, in a fresh process."""
    program = """
import sys
import smallr
from smallr.cli import config_files, fields, main
import importlib
assert main.main(["train", "cogpo", "--config.lr=1"]) == 1
assert main.main(["train", "cogpo", "--config.model=/no"]) == 1
assert main.main(["train", "cogpo", "--config.data.train=no.jsonl"]) == 1
assert main.main(["train", "cogpo", "--help"]) == 0
assert main.main(["convert", "--from=a", "--to=."]) == 1
for module, _ in main.COMMANDS.values():
    importlib.import_module(module)
for name in config_files.names():
    fields.describe(config_files.load(name)[0])
loaded = [name for name in %r if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program % (HEAVY,)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_the_front_is_fast():
    """Processor time, best of three: a busy machine says little by the clock."""

    def seconds(*argv: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds("-c", "import smallr") for _ in range(3)) < 0.2
    wrong = ("--config.lr=1", "--config.model=/no", "--config.data.train=no.jsonl")
    for argv in (("--help",), *(("train", "cogpo", field) for field in wrong)):
        assert min(seconds("-m", "smallr", *argv) for _ in range(3)) < 0.5


def test_old_and_new_forms_of_a_config(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("from configs.cogpo import get_config\n")
    specs = ("cogpo:smoke", "configs/cogpo.py:smoke", str(ROOT / "configs" / "cogpo.py:smoke"), f"{own}:smoke")
    loaded = [config_files.load(spec)[0].to_json() for spec in specs]
    assert len(set(loaded)) == 1
    assert config_files.load("router")[0].to_json() == config_files.load("adaptive/router")[0].to_json()
    assert config_files.load("gsm8k", "eval")[0].benchmark == "gsm8k"
    assert config_files.load("svamp", "eval")[0].benchmark == "svamp"
    assert config_files.load("sft")[1] == config_files.load("crv/sft")[1] == "sft"
    assert config_files.load("sft")[0].epochs != config_files.load("crv/sft")[0].epochs
    own.write_text("x = 1\n")
    with pytest.raises(UserError, match="get_config"):
        config_files.load(str(own))


def test_flags():
    def parsed(*argv: str):
        parser = Parser("x", "")
        parser.flag("rows", 8, "rows")
        parser.flag("max_length", None, "tokens", type=int)
        parser.flag("chat", True, "chat")
        parser.flag("shared", False, "shared")
        parser.flag("stop", [], "stop", many=True)
        return parser.parse(argv)

    options = parsed("--rows=1e3", "--max-length=5", "--chat=false", "--shared", "--stop=a b", "--stop=--c")
    assert (options.rows, options.max_length, options.chat, options.shared) == (1000, 5, False, True)
    assert options.stop == ["a b", "--c"]
    assert options.given == {"rows", "max_length", "chat", "shared", "stop"}
    default = parsed()
    assert (default.rows, default.max_length, default.chat, default.shared, default.stop) == (8, None, True, False, [])
    assert parsed().stop == []  # no default is shared between command lines


def test_fields_of_a_config(capsys):
    parser = Parser("train", "")
    parser.config(trains=True)
    flags = ("--lora", "--config.lora.rank=4", "--config.steps=1e3", "--config.data.chat=False", "--config.seed", "7")
    config = parser.parse(("cogpo", *flags)).config
    assert (config.lora.rank, config.steps, config.data.chat, config.seed) == (4, 1000, False, 7)
    assert type(config.steps) is int
    assert config.optimizer.learning_rate == 2e-4
    parser = Parser("evaluate", "")
    parser.config("eval")
    assert parser.parse(("gsm8k", "--config.sampling.stop=('a', 'b')")).config.sampling.stop == ("a", "b")
    assert parser.parse(("gsm8k", "--config.sampling.stop=Q:")).config.sampling.stop == ("Q:",)
    assert call(capsys, "evaluate", "gsm8k", "--help")[1].count("sampling.max_tokens=") == 1
