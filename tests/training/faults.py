"""Counts what a fault did to a run: how often it was tried and survived, samples lost or repeated, bits that differ."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """A line of the table."""

    tried: int = 0
    survived: int = 0
    lost: int = 0
    repeated: int = 0
    different: int = 0

    @property
    def clean(self) -> bool:
        """Whether the fault left no trace, and was tried."""
        return self.tried > 0 and self.survived == self.tried and not self.lost + self.repeated + self.different


@dataclass
class Faults:
    """The table, by the fault's name."""

    lines: dict[str, Tally] = field(default_factory=dict)

    def count(self, fault: str, run: Path, whole: Path, ranks: int, size: int) -> Tally:
        """Compares a run that met a fault and was started again with the one that did not.

        Args:
            fault: its name.
            run: the folder that `resume_run` wrote.
            whole: that of the other.
            ranks: how many processes they had.
            size: samples of a step.
        """
        line = self.lines.setdefault(fault, Tally())
        line.tried += 1
        finished = all((run / f"final-{rank}.json").exists() for rank in range(ranks))
        line.survived += finished
        mine, theirs = (lineage(folder, ranks) for folder in (run, whole))
        used = Counter(sample for step in mine for entry in step for sample in entry["samples"])
        expected = set(range(len(theirs) * size))
        line.lost += len(expected - set(used))
        line.repeated += sum(count - 1 for count in used.values()) + len(set(used) - expected)
        line.different += sum(a != b for a, b in zip(mine, theirs, strict=False)) + abs(len(mine) - len(theirs))
        line.different += any(
            not finished or (run / name).read_text() != (whole / name).read_text()
            for name in (f"final-{rank}.json" for rank in range(ranks))
        )
        return line

    def table(self) -> list[str]:
        """As Markdown."""
        head = [
            "| fault | tried | survived | samples lost | samples repeated | bits different |",
            "|---|---|---|---|---|---|",
        ]
        return head + [
            f"| {name} | {line.tried} | {line.survived} | {line.lost} | {line.repeated} | {line.different} |"
            for name, line in self.lines.items()
        ]


def lineage(folder: Path, ranks: int) -> list[list[dict[str, object]]]:
    """The steps that the last weights came from, of each the entries of all ranks: of a step made again, the last."""
    by_step = []
    for rank in range(ranks):
        path = folder / f"steps-{rank}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        by_step.append({entry["step"]: entry for entry in map(json.loads, lines)})
    return [[rank[step] for rank in by_step if step in rank] for step in sorted(by_step[0])]
