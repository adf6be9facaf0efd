"""What `sinktrain verify` has written, read and checked."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinktrain.reporting.numbers import plain
from sinktrain.reporting.reading import Fields, number, pair, read_json
from sinktrain.reporting.sources import Sources

VERIFY = "sinktrain verify"
STATEMENTS = ("proven", "not proven", "could not be judged")
EXTRAS = {
    "p_value": "p",
    "equivalent": "equivalent",
    "p_equivalence": "p of equivalence",
    "smallest_difference": "smallest difference seen, nats",
    "tokens_wanted": "tokens wanted",
    "resampled": "resampled",
    "documents": "documents",
    "seeds": "seeds",
}
"""What a verdict of schema 2 says of a comparison beside its interval, and the heading of it."""


@dataclass(frozen=True)
class Comparison:
    """Paired mean of NLL(a) - NLL(b) in nats, its 95% interval, and the one-sided 95% bound that decides.

    `bound` is the upper one where `a` should be no worse than `b`, and the lower one where it should be worse. `more`
    is what schema 2 says beside it, in words: its name and value.
    """

    a: str
    b: str
    question: str
    tokens: int
    difference: float
    interval: tuple[float, float]
    bound: float
    block_length: int | None
    enough: bool
    holds: bool
    title: str = ""
    more: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> str:
        """What is subtracted from what."""
        return self.title or f"{self.a} minus {self.b}"


@dataclass(frozen=True)
class Verdict:
    """What `sinktrain verify` wrote; `parts` are the verdicts on single models and texts, where it is one over many."""

    statement: str
    sentences: tuple[str, ...]
    margin: float
    cache_size: int
    model: str
    comparisons: tuple[Comparison, ...]
    needed: Comparison | None
    settings: dict[str, Any]
    text: str = ""
    method: str = ""
    sources: tuple[int, ...] = ()
    parts: tuple[Verdict, ...] = ()

    @property
    def pairs(self) -> tuple[Comparison, ...]:
        """All comparisons."""
        return (*self.comparisons, *self.needs)

    @property
    def needs(self) -> tuple[Comparison, ...]:
        """The comparisons that say whether the sink is needed: its own, or those of its parts."""
        return tuple(each.needed for each in (self, *self.parts) if each.needed is not None)

    def answer(self, pair: Comparison) -> str:
        """To the question of a pair; `not shown` where its 95% interval leaves both answers open."""
        if not pair.enough:
            return "too few tokens"
        if pair.holds:
            return "yes"
        low, high = pair.interval
        refuted = high < self.margin if pair in self.needs else low > self.margin
        return "no" if refuted else "not shown"

    @property
    def extra_names(self) -> list[str]:
        """The names of what is known beside the intervals, of any comparison."""
        return list(dict.fromkeys(name for pair in self.pairs for name, _ in pair.more))


def load_verdict(path: Path, option: str = "--verdict", sources: Sources | None = None) -> Verdict:
    """Reads the file that `sinktrain verify` wrote, of schema 1 or 2.

    Raises:
        UserError: the file or a field is missing or of another schema.
    """
    data = read_json(path, option, VERIFY, [1, 2])
    with Fields(option, path, VERIFY):
        settings = dict(data["settings"])
        command = str(data.get("command") or _command(path, settings))
        return _verdict(data, () if sources is None else (sources.add(path, command),))


def _command(path: Path, settings: dict[str, Any]) -> str:
    """The command that makes a verdict again which does not say its own: it lies beside the results it is about."""
    options = [word for key in ("cache", "against") if key in settings for word in (f"--{key}", str(settings[key]))]
    return shlex.join([*VERIFY.split(), "--results", str(path.parent), *options])


def _verdict(data: dict[str, Any], sources: tuple[int, ...], of: tuple[str, str] = ("", "")) -> Verdict:
    """`of` is what tells a verdict that is one of several apart: its model, and its text where there are several."""
    if data["statement"] not in STATEMENTS:
        raise ValueError(f"the statement {data['statement']!r} is unknown")
    needed, parts = data.get("needed"), data.get("verdicts") or ()
    texts = {part.get("text") for part in parts}

    def named(item: dict[str, Any]) -> tuple[str, str]:
        return str(item.get("model") or ""), str(item.get("text") or "") if len(texts) > 1 else ""

    return Verdict(
        statement=data["statement"],
        sentences=tuple(str(sentence) for sentence in data["sentences"]),
        margin=number(data["margin"]),
        cache_size=int(data["cache_size"]),
        model=str(data["model"]),
        text=str(data.get("text", "")),
        comparisons=tuple(_comparison(item, "upper", named(item)) for item in data["comparisons"]),
        needed=None if needed is None else _comparison(needed, "lower", of),
        settings=dict(data["settings"]),
        method=" ".join(_texts([data.get("method"), data.get("multiplicity")])),
        sources=sources,
        parts=tuple(_verdict(part, sources, named(part)) for part in parts),
    )


def _comparison(item: dict[str, Any], bound: str, of: tuple[str, str]) -> Comparison:
    model, text = of
    where = f", {text}" if text else ""
    return Comparison(
        a=str(item["a"]),
        b=str(item["b"]),
        question=str(item["question"]),
        tokens=int(item["tokens"]),
        difference=number(item["difference"]),
        interval=pair(item["interval"]),
        bound=number(item.get(bound)),
        block_length=item.get("block_length"),
        enough=bool(item.get("enough", True)),
        holds=bool(item["holds"]),
        title=f"{model}: {item['a']} minus {item['b']}{where}" if model else "",
        more=tuple((EXTRAS[name], _said(item[name])) for name in EXTRAS if item.get(name) is not None),
    )


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else plain(float(value))


def _texts(tree: Any) -> list[str]:
    """Every sentence in a record, in order."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [text for part in tree for text in _texts(part)]
    return [tree] if isinstance(tree, str) else []
