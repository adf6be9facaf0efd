"""Writes a text of made-up words, the same on every machine: `python recipes/tiny/text.py data/tiny/text.txt`.

Words follow Zipf's law, and each has a few successors that it prefers: something to learn in a hundred steps,
without a download. Documents are separated by a line with a form feed.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

WORDS, SUCCESSORS, DOCUMENTS, LENGTH = 600, 4, 300, 500


def documents(seed: int = 0) -> list[str]:
    """The documents. Only `random()` is drawn, whose numbers every version of Python agrees on."""
    draw = random.Random(seed).random
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(syllables[int(draw() * 60)] for _ in range(1 + int(3 * draw()))) for _ in range(WORDS)]
    follows = [[_zipf(draw()) for _ in range(SUCCESSORS)] for _ in words]
    made = []
    for _ in range(DOCUMENTS):
        word, text = _zipf(draw()), []
        for _ in range(LENGTH):
            text.append(words[word] + (". " if draw() < 0.1 else " "))
            word = follows[word][int(SUCCESSORS * draw() ** 2)] if draw() < 0.8 else _zipf(draw())
        made.append("".join(text).strip())
    return made


def _zipf(u: float) -> int:
    """A rank below WORDS from a uniform number: P(rank < r) grows with the logarithm of r."""
    return min(int((WORDS + 1) ** u) - 1, WORDS - 1)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\f\n".join(documents()) + "\n")
