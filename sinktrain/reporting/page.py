"""The page: everything that was read, put into the template."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sinktrain.reporting import numbers, words
from sinktrain.reporting.compare import Panel, differences
from sinktrain.reporting.gallery import legend
from sinktrain.reporting.material import Material
from sinktrain.reporting.numbers import ppl
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.series import FEWEST, far_rows, span

HERE = Path(__file__).parent


def render(material: Material, pictures: dict[str, Picture]) -> str:
    """The whole HTML file as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("count", "ppl", "nats", "change", "exponential", "plain", "seconds", "rate", "share"):
        environment.filters[name] = getattr(numbers, name)
    verdict = material.verdict
    return environment.get_template("page.html").render(
        css=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        material=material,
        results=material.results,
        verdict=verdict,
        models=material.models,
        row_of=material.rows,
        pictures=pictures,
        of=lambda *starts: [p for name, p in pictures.items() if name.startswith(starts)],
        legend=legend(material),
        claim=None if verdict is None else words.claim(verdict),
        describe=words.describe,
        tables=[_table(panel) for panel in material.panels],
        sampled=any(name.startswith("recompute") for panel in material.panels for name in panel.names),
        environment=_environment(material),
        **_middle(material),
    )


def _middle(material: Material) -> dict[str, Any]:
    """What is said of the models in the middle of the page."""
    results, verdict = material.results, material.verdict
    if results is None:
        return {"lost_sink": None, "rule_costs": [], "findings": [], "spans": [], "far": [], "reference": "",
                "fewest": FEWEST}  # fmt: skip
    rows = results.main_rows
    return {
        "lost_sink": words.lost_sink(results),
        "rule_costs": words.rule_costs(material.under_both_rules),
        "findings": words.findings(
            results, material.base, None if verdict is None else verdict.margin, material.models[0][1]
        ),
        "fewest": FEWEST,
        "reference": next((row.name for row in rows if row.method == "streaming"), "recompute"),
        "spans": [(at, span(at)) for at in (results.cache_size, results.text["tokens"])],
        "far": sorted(set().union(*(far_rows(model) for _, _, model in material.models))),
    }


def _table(panel: Panel) -> dict[str, Any]:
    """A table of caches by models, ready to be written."""

    def written(value: float) -> str:
        return f"{value:.4f}" if panel.bits and math.isfinite(value) else ppl(value)

    rows = []
    for name in panel.names:
        cells = [panel.cell(results, name) for results in panel.columns]
        rows.append((name, [None if c is None else [(value, written(value)) for value in c] for c in cells]))
    return {"panel": panel, "rows": rows, "pairs": differences(panel)}


def _environment(material: Material) -> list[tuple[str, list[str]]]:
    """Versions and machine, a row a name: one value where all models agree, else one value a model."""
    tables = [model.environment for _, _, model in material.models]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [table.get(name, numbers.MISSING) for table in tables]
        rows.append((name, values[:1] if len(set(values)) == 1 else values))
    return rows
