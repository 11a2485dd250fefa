"""The method on one page: instruction tuning, distinct providers, rounds of task-guided preference tuning, the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.agents.method_stages import train_in
from smallr.core.stages import Stage, StageFolder, Stages
from smallr.methods.collate import config as fields
from smallr.methods.collate.answers import answer_questions, choose_provider
from smallr.methods.collate.cost import PACE, REFERENCE, SCORE, TRAIN, WRITE, Lengths, Work, measured_pace
from smallr.methods.collate.data import Row, load_data, mixed_modes, opened, shares, task_parts, written
from smallr.methods.collate.generation import refine_rationales, write_rationales
from smallr.methods.collate.modes import ANSWER, GIVEN, RATIONALE, REFINE, Modes, open_modes, write_tokenizer
from smallr.methods.collate.pairs import gold_over_own, prefer_useful, refined_pairs
from smallr.methods.collate.report import PLOT, REPORT, write_report
from smallr.methods.collate.utility import score_rationales
from smallr.methods.collate.writer import Writer
from smallr.models.lora import LoRA
from smallr.models.peft import write_adapter
from smallr.training.opening import base_source, open_trained, saved_pair
from smallr.training.policy import lora_of
from smallr.training.saved import MODEL, SavedRun, choose_run, find_run


def run_collate(config: ConfigDict, out: Path) -> dict[str, Any]:
    """Runs COLLATE, or goes on with the run in `out`.

    Args:
      config: of `smallr.methods.collate.config.base`.
      out: gets a folder a stage, report.md, report.json, utilities.png, and stands for the chosen provider as a model.

    Returns:
      What report.json holds.

    Raises:
      Stopped: a signal ended it.
      UserError: anything that the user must change; what can be checked early is checked before the first stage.
    """
    fields.check(config)
    out = out.absolute()
    plan = Collate(config, out)  # rows that cannot be used are refused before the folder belongs to this run
    with StageFolder(out, {"model": config.model}, what="COLLATE run", files=(MODEL, REPORT, PLOT, PACE)) as whole:
        plan.estimate(out / PACE)
        plan.stages.run()
        choose_run(out, plan.value(plan.chosen))
        report = write_report(out, config, plan)
        whole.finish(report["choice"])
    return report


class Collate:
    """The graph of stages.

    Args:
      config: see `run_collate`.
      out: folder of the stages.

    Attributes:
      stages: all of them; `run` does what is missing.
      data: the rows.
      lengths, work: mean lengths of texts; kind and tokens of each stage that takes long, by which time is estimated.
      tuned: M_IFT.
      providers: by iteration: as they were made, then after each round.
      scored, pairs: of each round.
      held_out: utilities of the last providers' rationales for the validation rows.
      answers: of M_IFT and of the last providers, by name and mode.
      choice, chosen: the provider of highest likelihood, and its run.
    """

    def __init__(self, config: ConfigDict, out: Path):
        self.config, self.data, self.stages = config, load_data(config), Stages(out)
        tokenizer = open_trained(config.model).tokenizer()
        self.modes = open_modes(tokenizer, config.marks.to_dict())
        lora = LoRA(config.lora.rank, config.lora.alpha, target=config.lora.target) if config.lora.rank else None
        self.lengths, self.work = Lengths.of(self.data.tuning, tokenizer), {}
        self.writer = Writer(dtype=config.training.dtype, decode_slots=config.generation.decode_slots, lora=lora)
        do = self.stages.do
        self.tokenizer = do("tokenizer", write_tokenizer, config.model, config.marks.to_dict())
        self.mixed = do("tuning_rows", mixed_modes, self.data.tuning, self.modes, config.refine)
        tokens = len(self.data.tuning) * self.lengths.tuned(config.refine)
        self.tuned = self.train("instruction_tuning", "tuning", self.mixed, config.model, tokens)
        self.providers, self.scored, self.pairs = [], [], []
        self.build()

    def build(self) -> None:
        """Names the stages behind instruction tuning."""
        config = self.config
        parts = shares(self.data.tuning, config.providers, config.seed, config.training.rows)
        providers = [self.distinct_provider(s, share) for s, share in enumerate(parts)]
        self.providers.append(providers)
        play = self.refining_round if config.refine else self.round
        for number in range(config.rounds):
            providers = play(number, providers)
            self.providers.append(providers)
        self.measure(providers)

    def distinct_provider(self, s: int, share: Sequence[Row]) -> Stage:
        """Names the stages that make provider s of its share of the rationale data."""
        if not self.config.distinct:
            return self.tuned
        own = self.rationales(f"own_{s}", self.tuned, share, 0)
        pairs = self.stages.do(f"provider_pairs_{s}", gold_over_own, share, own, self.modes)
        return self.train(f"provider_{s}", "provider", pairs, self.tuned, len(share) * self.lengths.pair, s)

    def round(self, number: int, providers: Sequence[Stage]) -> list[Stage]:
        """Names the stages of a round: all write, the instruction-tuned model judges, all train on the pairs it prefers."""
        written = [
            self.rationales(f"rationales_{number}_{s}", each, self.data.task, self.stream(number, s))
            for s, each in enumerate(providers)
        ]
        scored = self.utilities(f"utilities_{number}", self.data.task, written)
        rule = {**self.config.pairs.to_dict(), "seed": f"{self.config.seed} {number}"}
        pairs = self.stages.do(f"pairs_{number}", prefer_useful, scored, self.modes, rule, f"round {number}")
        self.scored.append(scored)
        self.pairs.append(pairs)
        tokens = len(self.data.task) * self.lengths.pair
        return [self.train(f"round_{number}_{s}", "task", pairs, each, tokens, s) for s, each in enumerate(providers)]

    def refining_round(self, number: int, providers: Sequence[Stage]) -> list[Stage]:
        """Names the stages of a round with refinement: each provider trains on its own part of the task rows."""
        parts, trained = task_parts(self.data.task, self.config.rounds * len(providers), self.config.seed), []
        for s, start in enumerate(providers):
            part, name = parts[number * len(providers) + s], f"{number}_{s}"
            drafts = [
                self.rationales(f"drafts_{name}_{w}", each, part, self.stream(number, w))
                for w, each in enumerate(providers)
            ]
            refined = [
                self.refinements(f"refined_{name}_{w}_{v}", each, part, draft, self.stream(number, v))
                for w, draft in enumerate(drafts)
                for v, each in enumerate(providers)
            ]
            scored = self.utilities(f"utilities_{name}", part, drafts)
            better = self.utilities(f"refined_utilities_{name}", part, refined)
            where = f"round {number}, provider {s}"
            pairs = self.stages.do(f"pairs_{name}", refined_pairs, scored, better, self.modes, where)
            self.scored.append(scored)
            self.pairs.append(pairs)
            tokens = (1 + len(providers)) * len(part) * self.lengths.pair
            trained.append(self.train(f"round_{name}", "task", pairs, start, tokens, s))
        return trained

    def measure(self, providers: Sequence[Stage]) -> None:
        """Names the stages that answer the validation questions, choose a provider and train on its rationales."""
        held = self.data.validation
        self.ask({"M_IFT": self.tuned, **{f"provider {s}": provider for s, provider in enumerate(providers)}})
        written = [self.answers[f"provider {s}", RATIONALE] for s in range(len(providers))]
        self.held_out = self.utilities("validation_utilities", held, written)
        self.choice = self.stages.make("choice", choose_provider, self.held_out, written)
        self.chosen = self.stages.make("chosen_provider", pick, self.choice, list(providers))
        self.indirect = self.fine_tuned_base(written) if self.config.indirect else None

    def ask(self, models: Mapping[str, Stage]) -> None:
        """Names the stages in which models answer the validation questions, at once and behind a rationale."""
        self.answers = {
            (name, mode): self.answer(f"answers_{name.replace(' ', '_')}_{label}", model, mode)
            for name, model in models.items()
            for mode, label in ((ANSWER, "at_once"), (RATIONALE, "with_rationale"))
        }

    def fine_tuned_base(self, answers: Sequence[Stage]) -> Stage:
        """Names the published metric's stages: the base model fine-tuned on instruction and generated rationale."""
        do, config, task = self.stages.do, self.config, self.data.task
        own = self.rationales("rationales_indirect", self.chosen, task, self.stream(config.rounds, 0))
        rows = do("indirect_rows", rows_with_rationales, task, own, self.modes)
        model = self.train("indirect", "tuning", rows, config.model, len(task) * self.lengths.scored(1))
        given = self.stages.make("given_rationales", pick, self.choice, list(answers))
        return self.answer("answers_indirect", model, GIVEN, given)

    # Kinds of stages ----------------------------------------------------------------------------------------------

    def train(self, name: str, kind: str, rows: Stage, start: str | Stage, tokens: float, number: int = 0) -> Stage:
        """Names a stage that trains a model from `start`; its value is the run's folder.

        Args:
          name: of the stage.
          kind: tuning, provider or task.
          rows: stage that writes them.
          start: a model, or the stage that trains it.
          tokens: of the rows, as far as is known; the time is estimated by them.
          number: another one gives another order of rows.
        """
        config = fields.training_config(self.config, kind, self.config.seed + number)
        stage = self.stages.do(name, train_on, self.writer, config, rows, start, self.tokenizer)
        self.work[stage] = Work(TRAIN, tokens * (config.epochs + (kind != "tuning") * REFERENCE))
        return stage

    def rationales(
        self, name: str, model: Stage, rows: Sequence[Row], round: int, temperature: float | None = None
    ) -> Stage:
        """Names a stage in which a model writes a rationale for each row."""
        prompts = [self.modes.prompt(RATIONALE, row["question"]) for row in rows]
        how = self.sampling(0, round, temperature)
        stage = self.stages.do(name, write_rationales, self.writer, model, prompts, self.modes, how)
        self.work[stage] = self.writing(len(rows), RATIONALE)
        return stage

    def refinements(self, name: str, model: Stage, rows: Sequence[Row], drafts: Stage, round: int) -> Stage:
        """Names a stage in which a model refines the rationale that another one wrote for each row."""
        how = self.modes, self.sampling(0, round)
        stage = self.stages.do(name, refine_rationales, self.writer, model, rows, drafts, *how)
        self.work[stage] = self.writing(len(rows), REFINE)
        return stage

    def answer(self, name: str, model: Stage, mode: str, given: Stage | None = None) -> Stage:
        """Names a stage in which a model answers the validation questions in a mode."""
        rows, how = self.data.validation, (self.modes, self.answering(mode))
        stage = self.stages.do(name, answer_questions, self.writer, model, rows, mode, *how, given)
        self.work[stage] = self.writing(len(rows), mode, self.lengths.answer)
        return stage

    def writing(self, rows: int, mode: str, more: float = 0.0) -> Work:
        """Returns the work of writing for so many rows in a mode; `more` tokens than a rationale has, if it writes one."""
        written = self.lengths.rationale * (mode in (RATIONALE, REFINE)) + more
        return Work(WRITE, rows * written, rows * self.lengths.prompt(mode))

    def utilities(self, name: str, rows: Sequence[Row], written: Sequence[Stage]) -> Stage:
        """Names a stage in which the instruction-tuned model scores all rationales of each row."""
        stage = self.stages.do(name, score_rationales, self.tuned, rows, list(written), self.modes, self.scoring)
        self.work[stage] = Work(SCORE, len(rows) * self.lengths.scored(len(written)))
        return stage

    def sampling(self, more: int, round: int, temperature: float | None = None) -> dict[str, Any]:
        """Returns the options of generation, with `more` tokens than a rationale may have."""
        own, config = self.config.generation, self.config
        how = {"max_tokens": own.max_tokens + more}
        how["temperature"] = own.temperature if temperature is None else temperature
        return {"seed": config.seed, "round": round, "sampling": how}

    def stream(self, number: int, provider: int) -> int:
        """Returns the number under which a provider samples in a round: no two share one, and 0 is instruction tuning's."""
        return number * self.config.providers + provider + 1

    def answering(self, mode: str) -> dict[str, Any]:
        """Returns the options of answers: greedy, with room for an answer, and for a rationale where the mode writes one."""
        how = self.sampling(self.config.generation.answer_tokens, 0, 0.0)
        if mode != RATIONALE:
            how["sampling"]["max_tokens"] = self.config.generation.answer_tokens
        return how

    @property
    def scoring(self) -> dict[str, Any]:
        """Returns the options of utilities."""
        return {**self.config.utility.to_dict(), "dtype": self.config.training.dtype}

    def estimate(self, path: Path) -> None:
        """Says how much work each stage is, and how long it will take; what was measured for that is kept in a file."""
        pace = None
        if self.config.estimate and not all(map(self.stages.is_done, self.stages.named)):
            rows = [row for row in self.data.tuning if row["rationale"]][: self.config.generation.decode_slots]
            scored = self.lengths.scored(1)
            pace = measured_pace(path, self.writer, self.config.model, rows, self.modes, self.scoring, scored)
        for stage in self.stages.named:
            work = self.work.get(stage, Work())
            self.stages.expect(stage, work.kind, work.amount(pace), None if pace is None else work.seconds(pace))

    def value(self, stage: Stage) -> Any:
        """Returns the value of a finished stage."""
        return self.stages.value(stage)


def train_on(
    folder: Path,
    writer: Writer,
    config: ConfigDict,
    rows: Mapping[str, Any],
    start: str | Path,
    tokenizer: Mapping[str, Any],
) -> Path:
    """Trains in a folder on a stage's data set, with the tokenizer that knows the modes.

    A run that starts from one with adapters goes on with these, beside the base of that one.
    """
    writer.close()
    config = config.copy_and_resolve_references()
    run = find_run(start) if isinstance(start, Path) else None
    with config.unlocked():
        config.tokenizer, config.data.train = str(tokenizer["tokenizer"]), str(rows["rows"])
        if run is not None and "lora" in run.config:
            start, config.lora.adapter = run.config["model"], str(folder / "start")
            if not (folder / "start").exists():
                write_adapters(run, folder / "start")
    return train_in(folder, config, opened(rows), start)


def write_adapters(run: SavedRun, target: Path) -> None:
    """Writes a run's adapters in the format that another run starts from."""
    write_adapter(
        target,
        base_source(run),
        lora_of(run.config["lora"]),
        lambda path: saved_pair(run, path),
        base=run.config["model"],
        digest=run.checkpoint.metadata["frozen"],
        dtype="float32",
        card="",
    )


def pick(choice: Mapping[str, Any], values: Sequence[Any]) -> Any:
    """Returns the value of the chosen provider."""
    return values[choice["chosen"]]


def rows_with_rationales(folder: Path, task: Sequence[Row], own: Mapping[str, Any], modes: Modes) -> dict[str, Any]:
    """Writes rows of mode [I;R]→A whose rationales a provider has written."""
    rows = [
        {
            "prompt": modes.prompt(GIVEN, row["question"], each["text"]),
            "completion": modes.written_answer(row["answer"]),
        }
        for row, each in zip(task, opened(own), strict=True)
        if each["usable"]
    ]
    return written(folder, rows, {"rows in": len(task), "kept": len(rows)})
