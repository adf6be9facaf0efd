"""The page: everything that was read, put into the template."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinktrain.reporting import numbers, words
from sinktrain.reporting.figures import DASHES, Scale, attention, attention_scale, forest, loss, paints, stream
from sinktrain.reporting.records import Results, Row, Series, Verdict
from sinktrain.reporting.series import FEWEST, curves, far_rows, span

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Material:
    """What a page is made of; all but `results` may be missing."""

    results: Results
    base: Results | None = None
    verdict: Verdict | None = None
    metrics: dict[str, Series] | None = None
    settings: str | None = None

    @property
    def models(self) -> list[tuple[str, str, Results]]:
        """Key, word and results of each model, the fine-tuned one first."""
        named = [("tuned", "fine-tuned", self.results)]
        return named if self.base is None else [*named, ("base", "base", self.base)]


def render(material: Material) -> str:
    """The whole HTML file as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("count", "ppl", "nats", "change", "exponential", "plain", "seconds"):
        environment.filters[name] = getattr(numbers, name)
    figures = defaultdict(Markup, {name: Markup(svg) for name, svg in _figures(material).items()})
    verdict = material.verdict
    return environment.get_template("page.html").render(
        css=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        figures=figures,
        material=material,
        models=material.models,
        names=list(dict.fromkeys(row.name for _, _, model in material.models for row in model.rows)),
        row_of=_row_of(material),
        describe=words.describe,
        claim=None if verdict is None else words.claim(verdict),
        lost_sink=words.lost_sink(material.results),
        rule_costs=words.rule_costs([(word, model) for _, word, model in material.models]),
        findings=words.findings(material.results, material.base, None if verdict is None else verdict.margin),
        fewest=FEWEST,
        reference=next((row.name for row in material.results.rows if row.method == "streaming"), "recompute"),
        spans=[(at, span(at)) for at in (material.results.cache_size, material.results.text["tokens"])],
        legend=_legend(material),
        far=sorted(set().union(*(far_rows(model) for _, _, model in material.models))),
        environment=_environment(material),
    )


def _figures(material: Material) -> dict[str, str]:
    made: dict[str, str] = {}
    verdict = material.verdict
    if verdict is not None and verdict.comparisons:
        made["forest"] = forest("forest", "Is one sink enough?", list(verdict.comparisons), verdict.margin)
    if verdict is not None and verdict.needed is not None:
        made["needed"] = forest("needed", verdict.needed.question, [verdict.needed], verdict.margin)
    models = [model for _, _, model in material.models]
    panels = [curves(model) for model in models]
    scale = Scale(panels, [far_rows(model) for model in models]) if any(panels) else None
    for (key, word, model), drawn in zip(material.models, panels, strict=True):
        if scale is not None:
            fills_at = model.cache_size - model.sinks
            colours = _colours(material)
            made[f"stream-{key}"] = stream(f"stream-{key}", f"NLL, {word} model", drawn, scale, colours, fills_at)
        share = model.share
        if model.attention is not None and share is not None:
            title = f"Attention to position 0, {word} model"
            made[f"attention-{key}"] = attention(f"attention-{key}", title, share, model.attention["sink_metric"])
            made["attention-scale"] = attention_scale("attention-scale")
    if material.metrics is not None:
        made["loss"] = loss("loss", "Loss during training", material.metrics)
    return made


def _row_of(material: Material) -> dict[str, Row]:
    """The row that stands for each name in the first column: the fine-tuned model's, or else the base's."""
    return {row.name: row for _, _, model in reversed(material.models) for row in model.rows}


def _colours(material: Material) -> dict[str, str]:
    return paints(list(_row_of(material).values()))


def _legend(material: Material) -> list[dict[str, Any]]:
    """Name, CSS variable and line of each row, for the key above the stream panels."""
    colours, rows = _colours(material), _row_of(material)
    order = dict.fromkeys(row.name for _, _, model in material.models for row in model.rows)
    return [
        {
            "name": name,
            "colour": colours[name],
            "dots": rows[name].method == "recompute",
            "dash": " ".join(str(2 * part) for part in DASHES[colours[name]][1]) if colours[name] in DASHES else "none",
        }
        for name in order
    ]


def _environment(material: Material) -> list[tuple[str, list[str]]]:
    """Versions and machine, a row a name: one value where all models agree, else one value a model."""
    tables = [model.environment for _, _, model in material.models]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [table.get(name, numbers.MISSING) for table in tables]
        rows.append((name, values[:1] if len(set(values)) == 1 else values))
    return rows
