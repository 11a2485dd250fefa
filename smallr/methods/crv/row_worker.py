"""Runs one row through critique, rethink and verify, and then collects incorrect rationales for its pairs."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from smallr.agents.agent import AgentClient, UnusableError
from smallr.agents.prompts import Prompts
from smallr.agents.reading import read_label
from smallr.agents.usage import Usage
from smallr.methods.crv import formats
from smallr.methods.crv.checking import RuleCheck
from smallr.methods.crv.grades import Fit, Grades, read_grades
from smallr.methods.crv.names import LABELS
from smallr.methods.crv.replies import read_rationale, read_verdict
from smallr.methods.crv.rows import TeacherRow, blank

_ACTION = {"easy": "extend", "hard": "simplify", "medium": "repair"}  # how a rationale of a label is rethought
_UNKNOWN = "(not known)"


@dataclasses.dataclass(frozen=True)
class Method:
    """Holds settings and tools that all rows of a run share.

    Attributes:
      prompts, rules: as loaded.
      student: its size, in words.
      fit: which grades fit it; None for a critic of words.
      models: role -> name of the model that plays it.
      max_retries, form, box, recheck, verify_original, count, sources, samples: see `config.py`.
    """

    prompts: Prompts
    rules: RuleCheck
    student: str
    models: dict[str, str]
    max_retries: int
    form: str
    box: bool
    recheck: bool
    verify_original: bool
    count: int
    sources: tuple[str, ...]
    samples: int
    fit: Fit | None = None


class RowWorker:
    """Works on one row.

    Args:
      row: to be worked on.
      method: of the run.
      client: asks the agents for this row.
      usage: in which `client` counts for this row.
    """

    def __init__(self, row: TeacherRow, method: Method, client: AgentClient, usage: Usage):
        self._original_row, self._row = row, row.encodable()
        self._method, self._client, self._usage = method, client, usage
        row = self._row
        self._form = formats.detect(row.rationale) if method.form == "auto" else method.form
        prompt = method.prompts.render("student", question=row.question)
        self._out = blank(row, prompt, method.models) | {"id": self._original_row.id}
        self._verdicts: dict[str, tuple[str, str]] = {}  # of the verifier, by rationale: it is asked about a text once

    async def run(self) -> dict[str, Any]:
        """Gives the output row; `reason` is empty if it was verified.

        Raises:
          UnansweredError, CircuitOpenError: the row is not finished.
        """
        out = self._out
        try:
            if self._row != self._original_row:
                raise UnusableError("not encodable", "question, answer or rationale hold half a character")
            if not self._row.rationale:
                raise UnusableError("empty rationale", "")
            await self._take_original()
            out["label"] = await self._label(out["original"])
            await self._fit()
        except UnusableError as error:
            out["reason"], out["detail"] = error.args
        else:
            with contextlib.suppress(UnusableError):  # what comes after a row's verification does not undo it
                await self._collect_incorrect()
            if self._method.recheck:
                with contextlib.suppress(UnusableError):
                    await self._relabel()
        out["requests"] = self._usage.total("requests")
        out["prompt_tokens"] = self._usage.total("prompt_tokens")
        out["completion_tokens"] = self._usage.total("completion_tokens")
        return out

    async def _take_original(self) -> None:
        """Brings the teacher's rationale into the form of what is written, and tells whether it is right."""
        row, out = self._row, self._out
        found = await self._method.rules.check(row.rationale, row.answer)
        out["original"] = self._in_form(row.rationale, found.extracted if found else "")
        right = found is None or found.correct
        if found is None or self._method.verify_original:
            out["original_verdict"], _ = await self._judge(out["original"])
            right = right and out["original_verdict"] == "right"
        out["original_correct"] = right

    async def _relabel(self) -> None:
        """Asks the critic about the rationale that is trained on, where it is another than the teacher's."""
        out = self._out
        if out["rewritten"]:
            out["relabel"] = await self._label(out["rationale"], after=True)
        else:
            out["relabel"] = out["label"]
            out |= Grades(out["verbosity"], out["cognitive_difficulty"]).columns(after=True)

    async def _label(self, rationale: str, after: bool = False) -> str:
        """Asks the critic for a word, or for grades, from which the word follows."""
        fit = self._method.fit
        prompt = self._method.prompts.render(
            "critique" if fit is None else "grade",
            question=self._row.question,
            answer=self._row.answer or _UNKNOWN,
            rationale=rationale,
            student=self._method.student,
        )
        if fit is not None:
            grades, problem = await self._client.read("critic", prompt, read_grades)
            if grades is None:
                raise UnusableError(f"critic: {problem}", "")
            self._out |= grades.columns(after)
            return fit.label(grades)
        label, problem = await self._client.read("critic", prompt, lambda sample: read_label(sample, LABELS))
        if label is None:
            raise UnusableError(f"critic: {problem}", "")
        return label

    async def _fit(self) -> None:
        """Makes attempts until one is right."""
        out, label = self._out, self._out["label"]
        reason, last = "", out["original"]
        for number in range(1 + self._method.max_retries):
            before = self._tokens()
            action = "keep" if label == "medium" and number == 0 else _ACTION[label]
            text, problem = out["original"], ""
            if action != "keep":
                text, problem = await self._rethink(action, reason, last if number else "")
            verdict, reason = ("malformed", problem) if text is None else await self._verify(text)
            tokens = [now - then for now, then in zip(self._tokens(), before, strict=True)]
            out["attempts"].append(
                {
                    "action": action,
                    "rationale": text or "",
                    "verdict": verdict,
                    "reason": reason,
                    "prompt_tokens": tokens[0],
                    "completion_tokens": tokens[1],
                }
            )
            if verdict == "right":
                out.update(rationale=text, completion=text, rewritten=text != out["original"])
                out["verified_by"] = "rule and agent" if self._has_rule() else "agent"
                return
            last = text or last
        raise UnusableError(f"not verified: {verdict}", reason)

    async def _rethink(self, action: str, reason: str, attempt: str) -> tuple[str | None, str]:
        """Has a rationale written anew; gives None and why if no reply can be used."""
        prompt = self._writing_prompt(action, self._out["original"])
        if reason:
            prompt += "\n\n" + self._method.prompts.render("feedback", reason=reason, attempt=attempt)
        text, problem = await self._client.read(
            "rethinker",
            prompt,
            lambda sample: read_rationale(sample, self._form, self._row.question, self._row.rationale),
        )
        if text is None:
            return None, problem
        found = await self._method.rules.check(text, self._row.answer)
        return self._in_form(text, self._row.answer if found and found.correct else ""), ""

    async def _verify(self, rationale: str) -> tuple[str, str]:
        """Applies the rule check and, only if that lets it pass, asks the verifier. Gives one of VERDICTS and why."""
        found = await self._method.rules.check(rationale, self._row.answer)
        if found is not None and not found.correct:
            got = f"it comes to {found.extracted}" if found.extracted else found.reason
            return "wrong answer", f"The answer is not {self._row.answer}: {got}."
        return await self._judge(rationale)

    async def _judge(self, rationale: str) -> tuple[str, str]:
        """Asks the verifier; gives one of VERDICTS and why."""
        if rationale not in self._verdicts:
            prompt = self._method.prompts.render(
                "verify", question=self._row.question, answer=self._row.answer or _UNKNOWN, rationale=rationale
            )
            verdict, problem = await self._client.read("verifier", prompt, read_verdict)
            if verdict is None:
                self._verdicts[rationale] = ("no verdict", f"verifier: {problem}")
            else:
                right, reason = verdict
                self._verdicts[rationale] = ("right", "") if right else ("rejected", reason or "A step is wrong.")
        return self._verdicts[rationale]

    async def _collect_incorrect(self) -> None:
        """Collects incorrect rationales from each source in turn, until there are enough."""
        collect = {"teacher": self._from_teacher, "student": self._from_student, "injected": self._injected}
        for source in self._method.sources:
            if len(self._out["incorrect"]) < self._method.count:
                await collect[source]()

    async def _from_teacher(self) -> None:
        if self._has_rule():
            await self._add_incorrect(self._row.rationale, "teacher")

    async def _from_student(self) -> None:
        samples = await self._client.samples("student", self._out["prompt"], n=self._method.samples)
        for sample in samples:
            if sample.text.strip() and sample.finish_reason != "length":
                await self._add_incorrect(sample.text.strip(), "student")

    async def _injected(self) -> None:
        right = self._out["rationale"]
        prompt = self._writing_prompt("inject", right)
        for variant in range(self._method.count):
            if len(self._out["incorrect"]) < self._method.count:
                text, _ = await self._client.read(
                    "injector",
                    prompt,
                    lambda sample: read_rationale(sample, self._form, self._row.question, right),
                    variant,
                )
                if text is not None:
                    await self._add_incorrect(text, "injected")

    async def _add_incorrect(self, text: str, source: str) -> None:
        """Keeps a rationale that comes to another answer, or where there is no gold answer one that the verifier rejects."""
        found = await self._method.rules.check(text, self._row.answer)
        if found is not None:
            if found.correct or not found.extracted:
                return
            answer, reason = found.extracted, "wrong answer"
        else:
            verdict, why = await self._judge(text)
            if verdict != "rejected":
                return
            answer, reason = "", f"rejected: {why}"
        text = self._in_form(text, answer)
        taken = [self._out["rationale"], *(each["rationale"] for each in self._out["incorrect"])]
        if text not in taken and len(self._out["incorrect"]) < self._method.count:
            self._out["incorrect"].append({"rationale": text, "source": source, "answer": answer, "reason": reason})

    def _in_form(self, text: str, answer: str | None) -> str:
        return formats.convert(text, self._form, (answer or "") if self._method.box else "")

    def _has_rule(self) -> bool:
        return bool(self._row.answer) and self._method.rules.is_used

    def _writing_prompt(self, name: str, rationale: str) -> str:
        return self._method.prompts.render(
            name,
            question=self._row.question,
            answer=self._row.answer or _UNKNOWN,
            rationale=rationale,
            student=self._method.student,
            format=formats.INSTRUCTIONS[self._form],
        )

    def _tokens(self) -> tuple[int, int]:
        return self._usage.total("prompt_tokens"), self._usage.total("completion_tokens")
