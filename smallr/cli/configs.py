"""Lists the configs, or shows the fields of one.

smallr configs                list them, a line each
smallr configs show cogpo     every field with its value and meaning
"""

from __future__ import annotations

from argparse import Namespace
from itertools import groupby

from smallr.cli import config_files, fields
from smallr.cli.parsing import Parser, UsageError

_GROUPS = {
    "": "train",
    "adaptive": "answer first or think first",
    "collate": "models that teach each other",
    "crv": "rationales that fit",
    "decomposition": "sub-questions and offline RL",
    "eval": "benchmarks",
}


def flags(parser: Parser) -> None:
    """Names the arguments."""
    parser.argument("action", "list (the default) or show", count="?", choices=("list", "show"))
    parser.argument("name", "of a config to show", count="?")


def run(options: Namespace) -> None:
    """Prints the list or the fields."""
    if options.action == "show":
        if options.name is None:
            raise UsageError("configs: name a config, e.g. smallr configs show cogpo")
        config, _ = config_files.load(options.name)
        name = options.name.partition(":")[0]
        if name in config_files.names():
            print(config_files.docstring(name), end="\n\n")
        print(fields.describe(config))
        return
    width = max(map(len, config_files.names()))
    for group, names in groupby(config_files.names(), lambda name: name.rpartition("/")[0]):
        print(f"{_GROUPS.get(group, group)}:")
        for name in names:
            print(f"  {name:{width}}  {config_files.docstring(name).splitlines()[0]}")
    print(
        "\nsmallr configs show NAME shows its fields; smallr train NAME, smallr evaluate NAME, smallr crv NAME run it."
    )
