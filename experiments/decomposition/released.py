"""Reads the responses of decomposition policies that were released with GSM8K-AI-SubQ (arXiv 2402.01812)."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from smallr.core.errors import UserError

POLICIES = {  # name in the files -> in the tables
    "finetune": "BC",
    "filtered_bc": "filtered BC",
    "iql": "ILQL full",
    "iql_sparse": "ILQL sparse",
    "chat": "ChatGPT's own",
}
SIZES = {"dist": "DistilGPT2", "": "GPT-2 small", "medium": "GPT-2 medium"}
SOLVERS = ("chatgpt", "llama7b", "llama13b", "mistral")


@dataclasses.dataclass(frozen=True)
class Policy:
    """Who wrote the sub-questions: a method and the size of the student (empty for ChatGPT)."""

    method: str
    size: str

    @classmethod
    def named(cls, name: str) -> Policy:
        """Reads the name of a file, e.g. `iql_medium_sparse`; the size stands before `sparse`, and none is GPT-2 small.

        Raises:
          UserError: a name that is none of the released ones.
        """
        parts = name.split("_")
        size = next((part for part in parts if part in SIZES), "")
        method = "_".join(part for part in parts if part != size)
        if method not in POLICIES:
            raise UserError(
                f"responses of {name!r}: the policy must be one of: {', '.join(POLICIES)}, with dist or medium"
            )
        return cls(POLICIES[method], "" if method == "chat" else SIZES[size])

    def __str__(self) -> str:
        return f"{self.method}, {self.size}" if self.size else self.method


def read_rows(path: Path) -> list[dict]:
    """Reads JSON lines, packed by gzip or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


def find_responses(folder: Path) -> Iterator[tuple[str, Policy, Path]]:
    """Yields solver, policy and file of each set of responses.

    Raises:
      UserError: there are none.
    """
    flat = [path for path in sorted(folder.glob("responses_*.jsonl*"))]
    found = [(path.name.split("_")[1], path.name.split("_", 2)[2].split(".")[0], path) for path in flat]
    for path in sorted(folder.glob("eval_responses/*/eval_*.jsonl")):
        found.append((path.parent.name, path.stem.removeprefix("eval_"), path))
    if not found:
        raise UserError(
            f"--data={folder}: no file responses_SOLVER_POLICY.jsonl[.gz] and no eval_responses/SOLVER in it"
        )
    for solver, policy, path in found:
        yield solver, Policy.named(policy), path


def key_of(problem: str) -> str:
    """Returns a problem without spaces: students that copied a problem into their output changed some of them."""
    return "".join(problem.split())


def teacher_rows(folder: Path) -> list[dict]:
    """Reads the test problems with ChatGPT's own sub-questions and GSM8K's answers.

    Raises:
      UserError: the file is missing.
    """
    paths = [*folder.glob("qg_test_data_raw.jsonl*"), *folder.glob("dataset/qg_test_data_raw.jsonl*")]
    if not paths:
        raise UserError(f"--data={folder}: qg_test_data_raw.jsonl[.gz] is missing, which has the answers")
    return read_rows(paths[0])


def gold_answers(folder: Path) -> dict[str, str]:
    """Returns GSM8K's answers behind "####", by `key_of` their problems."""
    return {key_of(row["problem"]): row["answer"].rpartition("####")[2].strip() for row in teacher_rows(folder)}
