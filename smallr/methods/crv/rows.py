"""Defines the rows that CRV reads, and the columns of the data sets that it writes.

A finished run has two data sets with the splits of the source, both with `FEATURES`: `verified`, to train on, and `failed`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datasets import Features, List, Value

from smallr.agents.agent import encodable
from smallr.methods.crv.grades import UNGRADED
from smallr.methods.crv.names import ROLES

_TEXT, _COUNT, _FLAG = Value("string"), Value("int64"), Value("bool")
ATTEMPT = {
    "action": _TEXT,  # one of ACTIONS
    "rationale": _TEXT,  # empty if there was no usable reply
    "verdict": _TEXT,  # one of VERDICTS
    "reason": _TEXT,  # why not right; the rethinker is told it
    "prompt_tokens": _COUNT,  # of the requests of this attempt, the verifier's included
    "completion_tokens": _COUNT,
}
INCORRECT = {
    "rationale": _TEXT,
    "source": _TEXT,  # one of INCORRECT_SOURCES
    "answer": _TEXT,  # the wrong answer, as extracted; empty without a gold answer
    "reason": _TEXT,  # how it is known to be wrong
}
FEATURES = Features(
    {
        "id": _TEXT,  # digest of split, question, answer and the teacher's rationale
        "source": _TEXT,  # the row's own `source`, else the data set
        "row": _COUNT,  # its number among those loaded of the split
        "question": _TEXT,
        "answer": _TEXT,  # gold; empty if there is none
        "prompt": _TEXT,  # what the student is asked: prompts/student.txt
        "completion": _TEXT,  # equal to `rationale`: prompt and completion are what kind=sft reads
        "rationale": _TEXT,  # fitted to the student and verified; empty in `failed`
        "teacher_rationale": _TEXT,  # as it stood in the source
        "original": _TEXT,  # the same in the form of `rationale` (format, box), to be compared with it in pairs
        "original_correct": _FLAG,  # rule check, and the verifier where that was asked or there is no gold answer
        "original_verdict": _TEXT,  # of the verifier on `original`: right, rejected, no verdict; empty: not asked
        "label": _TEXT,  # the critic on the teacher's rationale, one of LABELS; empty if it gave none
        "relabel": _TEXT,  # the critic on `rationale`, with config.recheck; else empty
        "verbosity": _COUNT,  # of the teacher's rationale, from 0 to 9 by config.critic=grades; else -1, as the next
        "cognitive_difficulty": _COUNT,
        "verbosity_after": _COUNT,  # of `rationale`, with config.recheck
        "cognitive_difficulty_after": _COUNT,
        "rewritten": _FLAG,  # whether `rationale` is another text than `original`
        "verified_by": _TEXT,  # "rule and agent", or "agent" where there is no gold answer; empty in `failed`
        "attempts": List(ATTEMPT),
        "incorrect": List(INCORRECT),
        "agents": {role: _TEXT for role in ROLES},  # the model that played each
        "requests": _COUNT,
        "prompt_tokens": _COUNT,  # of all requests of the row
        "completion_tokens": _COUNT,
        "reason": _TEXT,  # why it failed; empty in `verified`
        "detail": _TEXT,  # more on that
    }
)


@dataclasses.dataclass(frozen=True)
class TeacherRow:
    """Holds a row to be worked on.

    Attributes:
      split, row, source: where it stands.
      question, rationale: of the teacher.
      answer: gold; empty if there is none.
    """

    split: str
    row: int
    source: str
    question: str
    answer: str
    rationale: str

    def encodable(self) -> TeacherRow:
        """Returns the row with a question mark for each half of a character, which no data set can hold."""
        texts = {name: encodable(getattr(self, name)) for name in ("source", "question", "answer", "rationale")}
        return dataclasses.replace(self, **texts)

    @property
    def id(self) -> str:
        """Returns the digest of what the row says, so that other rows of the same file do not matter."""
        content = json.dumps([self.split, self.question, self.answer, self.rationale])
        return hashlib.sha256(content.encode()).hexdigest()[:20]


def blank(row: TeacherRow, prompt: str, agents: Mapping[str, str]) -> dict[str, Any]:
    """Returns the output row as far as it is known before anything was asked."""
    return {
        "id": row.id,
        "source": row.source,
        "row": row.row,
        "question": row.question,
        "answer": row.answer,
        "prompt": prompt,
        "completion": "",
        "rationale": "",
        "teacher_rationale": row.rationale,
        "original": row.rationale,
        "original_correct": False,
        "original_verdict": "",
        "label": "",
        "relabel": "",
        **UNGRADED.columns(),
        **UNGRADED.columns(after=True),
        "rewritten": False,
        "verified_by": "",
        "attempts": [],
        "incorrect": [],
        "agents": dict(agents),
        "requests": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "reason": "",
        "detail": "",
    }
