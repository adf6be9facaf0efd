"""Every picture of a page, by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from sinktrain.reporting.compare import differences
from sinktrain.reporting.kinds import lines
from sinktrain.reporting.material import Material
from sinktrain.reporting.picture import Key, Picture
from sinktrain.reporting.pictures import caches, flat, forest, forgetting, heads, maps, speed, stream, training
from sinktrain.reporting.pictures.common import paints
from sinktrain.reporting.series import curves, far_rows

ANSWERS = {"recall": "Recall of a fact", "streameval": "StreamEval"}


def gallery(material: Material) -> dict[str, Picture]:
    """The pictures that the material is enough for, in the order of the page."""
    made: dict[str, Picture] = {}
    for part in (_verdict, _tables, _streams, _heats, _training, _attention, _forgetting, _prices):
        for picture in part(material):
            name = next(name for n in count() if (name := f"{picture.name}{nth(n)}") not in made)
            made[name] = replace(picture, name=name)
    return made


def slug(text: str) -> str:
    """A name for a file: small letters, digits and dashes; two texts may have the same."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"


def nth(index: int) -> str:
    """What tells the pictures of one kind apart: nothing for the first, then -2, -3."""
    return "" if index == 0 else f"-{index + 1}"


def legend(material: Material) -> tuple[Key, ...]:
    """Name, CSS variable and line of each row of the curves."""
    rows = {row.name: row for _, _, model in reversed(material.models) for row in model.main_rows}
    order = list(dict.fromkeys(row.name for _, _, model in material.models for row in model.main_rows))
    colours = paints([rows[name] for name in order])
    drawn = {curve.row.name for _, _, model in material.models for curve in curves(model)}
    return tuple(Key(name, colours[name], rows[name].method == "recompute") for name in order if name in drawn)


def _verdict(material: Material) -> Iterator[Picture]:
    verdict = material.verdict
    if verdict is not None and verdict.comparisons:
        one = verdict.comparisons[0].a
        yield forest.differences(
            "verdict", f"Is {one} enough?", list(verdict.comparisons), verdict.margin, verdict.sources
        )
    if verdict is not None and verdict.needs:
        yield forest.differences(
            "needed", verdict.needs[0].question, list(verdict.needs), verdict.margin, verdict.sources
        )


def _tables(material: Material) -> Iterator[Picture]:
    for index, panel in enumerate(material.panels):
        if not panel.bits:
            rows = lines(panel)
            used = panel.pair_sources if any(len(line.seeds) > 1 for line in rows) else ()
            yield forest.table(f"table3{nth(index)}", panel.text, rows, panel.sources + used)
        for other, pairs in differences(panel) if material.compared else ():
            title = f"{other.label} minus {panel.columns[0].label}"
            # without any sink a model can be so much worse that nothing else could be seen on its scale
            pairs = [pair for pair in pairs if not pair.question.startswith("0+")] or pairs
            used = (*panel.columns[0].sources[1:2], *other.sources[1:2])
            picture = forest.differences(
                f"difference{nth(index)}-{slug(other.label)}", title, pairs, None, used, f"Difference in NLL: {title}"
            )
            yield replace(picture, note=panel.text if len(material.panels) > 1 else "")


def _streams(material: Material) -> Iterator[Picture]:
    models = [model for _, _, model in material.models]
    drawn = [curves(model) for model in models]
    if not any(drawn):
        return
    scale, keys = stream.Scale(drawn, [far_rows(model) for model in models]), legend(material)
    for (key, word, model), panel in zip(material.models, drawn, strict=True):
        if panel:
            fills_at = max(1, model.cache_size - model.sinks)
            yield stream.stream(f"stream-{key}", word.capitalize(), panel, scale, keys, fills_at, model.sources[1:2])


def _heats(material: Material) -> Iterator[Picture]:
    """Of every model with caches of several sizes, those in the middle of the page first."""
    middle = [(key, word.capitalize(), model) for key, word, model in material.models]
    known = [model for _, _, model in middle]
    others = [(slug(each.label), each.label, each) for each in material.every if all(each is not m for m in known)]
    named = {id(each): panel.text for panel in material.panels for each in panel.columns}
    for key, title, model in [*middle, *others]:
        picture = caches.heat(f"caches-{key}", title, model)
        if picture is not None:
            yield replace(picture, note=named.get(id(model), ""))


def _training(material: Material) -> Iterator[Picture]:
    for index, run in enumerate(material.trainings):
        whose = material.whose(run)
        if run.metrics is not None:
            yield training.loss(f"loss{nth(index)}", f"Loss{whose}", run.metrics, run.sources)
            born = training.birth(f"birth{nth(index)}", f"Birth of the sink{whose}", run.metrics, run.sources)
            if born is not None:
                yield born


def _attention(material: Material) -> Iterator[Picture]:
    shown = False
    for key, word, model in reversed(material.models):
        share = model.share
        if model.attention is not None and share is not None:
            shown = True
            when = "Before: base" if key == "base" else f"After: {word}" if material.base else word.capitalize()
            yield heads.heads(f"attention-{key}", when, share, model.attention["sink_metric"], model.sources[:1])
    if shown:
        yield heads.scale("attention-scale")
    for index, each in enumerate(material.diagnoses):
        others = [other for other in material.diagnoses if other is not each]
        yield maps.maps(f"maps{nth(index)}", each.label, each, others)
    for index, each in enumerate(material.diagnoses):
        picture = maps.along(f"along{nth(index)}", each.label, each)
        if picture is not None:
            yield picture


def _forgetting(material: Material) -> Iterator[Picture]:
    for kind, title in ANSWERS.items():
        found = [answers for answers in material.answers if answers.kind == kind]
        for index, answers in enumerate(found):
            if any(row.distance > 0 for row in answers.rows):
                named = f"{title}: {answers.label}" if len(found) > 1 else title
                yield forgetting.by_distance(f"{kind}{nth(index)}", named, answers)
            if any(math.isfinite(row.gain) for row in answers.rows):
                named = f"Likelihood of the fact: {answers.label}" if len(found) > 1 else "Likelihood of the fact"
                yield forgetting.gain(f"{kind}-gain{nth(index)}", named, answers)


def _prices(material: Material) -> Iterator[Picture]:
    for index, each in enumerate(material.speeds):
        yield speed.latency(f"latency{nth(index)}", each)
        yield speed.memory(f"memory{nth(index)}", each)
    for index, long in enumerate(material.flats):
        yield flat.flat(f"flat{nth(index)}", f"A stream of {long.tokens:,} tokens", long)
