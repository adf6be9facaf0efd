"""What a page is made of: everything that was read, and which model plays which part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sinktrain.reporting.compare import Panel, by_hash
from sinktrain.reporting.diagnosis import Diagnosis
from sinktrain.reporting.found import Found
from sinktrain.reporting.records import Answers, Flat, Results, Row, Speed, Training
from sinktrain.reporting.sources import Sources
from sinktrain.reporting.verdict import Verdict


@dataclass(frozen=True)
class Material:
    """All of it; any part may be missing. `results` is the model in the middle of the page, `base` the one beside."""

    sources: Sources
    results: Results | None = None
    base: Results | None = None
    verdict: Verdict | None = None
    every: tuple[Results, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    trainings: tuple[Training, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    answers: tuple[Answers, ...] = ()
    speeds: tuple[Speed, ...] = ()
    flats: tuple[Flat, ...] = ()
    compared: tuple[Panel, ...] = field(default=())

    @property
    def models(self) -> list[tuple[str, str, Results]]:
        """Key, word and results of each model in the middle of the page, the fine-tuned one first."""
        if self.results is None:
            return []
        word = "evaluated" if self.base is None else "fine-tuned"
        named = [("tuned", word, self.results)]
        return named if self.base is None else [*named, ("base", "base", self.base)]

    @property
    def records(self) -> tuple[int, ...]:
        """The results.json of each model in the middle of the page."""
        return tuple(number for _, _, model in self.models for number in model.sources[:1])

    @property
    def under_both_rules(self) -> list[tuple[str, Results]]:
        """Word and results of the models in the middle; if none was streamed under both rules, of those that were."""
        middle = [(word, model) for _, word, model in self.models]
        if any(model.position_rules for _, model in middle):
            return middle
        return [(each.label, each) for each in self.every if each.position_rules] or middle

    @property
    def panels(self) -> list[Panel]:
        """Tables of more models than stand in the middle, or of those that are to be compared."""
        if self.compared:
            return list(self.compared)
        return by_hash(self.every) if len(self.every) > len(self.models) else []

    def whose(self, run: Training) -> str:
        """What follows a word about a training run, where it could be that of another model: a comma and its label."""
        return f", {run.label}" if run.label and (len(self.trainings) > 1 or self.panels) else ""

    @property
    def rows(self) -> dict[str, Row]:
        """The row that stands for each name in the first column: the fine-tuned model's, or else the base's."""
        return {row.name: row for _, _, model in reversed(self.models) for row in model.rows}

    @property
    def figure_names(self) -> list[str]:
        """The rows of the table of diagnoses."""
        return list(dict.fromkeys(name for each in self.diagnoses for name in each.figures))

    @property
    def title(self) -> str:
        """Of the page."""
        if self.compared:
            names = list(dict.fromkeys(each.label for panel in self.compared for each in panel.columns))
            return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        if self.results is not None:
            return self.results.label or str(self.results.model["name"])
        labels = [each.label for part in (self.answers, self.diagnoses, self.speeds) for each in part]
        return labels[0] if labels else "What was measured"


def made_of(found: Found, sources: Sources, compared: Sequence[Panel] = ()) -> Material:
    """The parts that were found, each in its place.

    The model in the middle is the first with sink tokens, or else the first; the one beside it is the first without, of
    the same text, cache size and position rule. The verdict is the one on the model in the middle, or else the first.
    """
    results = next((each for each in found.results if each.sinks), next(iter(found.results), None))
    base = next((each for each in found.results if results and _is_base(each, results)), None)
    about = [v for v in found.verdicts if results is not None and _is_about(v, results)]
    return Material(
        sources=sources,
        results=results,
        base=base,
        verdict=next(iter(about), None if results is not None else next(iter(found.verdicts), None)),
        every=tuple(found.results),
        verdicts=tuple(part for verdict in found.verdicts for part in (verdict.parts or (verdict,))),
        trainings=tuple(found.trainings),
        diagnoses=tuple(sorted(found.diagnoses, key=lambda each: each.sinks)),
        answers=tuple(found.answers),
        speeds=tuple(found.speeds),
        flats=tuple(found.flats),
        compared=tuple(compared),
    )


def _is_base(each: Results, results: Results) -> bool:
    same = (
        all(getattr(each, name) == getattr(results, name) for name in ("cache_size", "rule"))
        and each.text["sha256"] == results.text["sha256"]
    )
    return same and results.sinks > 0 and not each.sinks


def _is_about(verdict: Verdict, results: Results) -> bool:
    names = {results.model["name"], results.model["group"], results.label}
    mine = verdict.model in names and verdict.text in ("", results.text["name"])
    return mine or any(_is_about(part, results) for part in verdict.parts)
