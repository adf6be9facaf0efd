"""What an exported folder says of where it lies, as it must stand in a repository of the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

CARD, ADAPTER = "README.md", "adapter/adapter_config.json"
_FIRST = re.compile(r'AutoTokenizer\.from_pretrained\("([^"]*)"')


def renamed(folder: Path, place: Path, name: str, revision: str) -> dict[str, Path]:
    """Copies of the files that name the folder, by their paths in it, which name a repository instead.

    Args:
        folder: that `sinktrain export` wrote.
        place: to write the copies into.
        name: of the repository, USER/NAME.
        revision: its branch, which the card's code then asks for, unless it is main.
    """
    branch = None if revision == "main" else revision
    made = {}
    if (folder / CARD).is_file():
        made[CARD] = card_of((folder / CARD).read_text(), name, branch)
    if (folder / ADAPTER).is_file():
        config = json.loads((folder / ADAPTER).read_text())
        made[ADAPTER] = json.dumps({**config, "base_model_name_or_path": name, "revision": branch}, indent=2)
    for path, text in made.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    return {path: place / path for path in made}


def card_of(card: str, name: str, branch: str | None) -> str:
    """The card, whose title and code name `name`, and `branch` if there is one, where they named something else."""
    first = _FIRST.search(card)
    if first is None:
        return card
    before, given = first[1], f'"{name}"' + (f', revision="{branch}"' if branch else "")
    loads = rf'(from_pretrained\((?:model, )?|custom_generate=)"{re.escape(before)}"(?:, revision="[^"]*")?'
    card = re.sub(loads, lambda found: found[1] + given, card)
    title = rf"^# {re.escape(before.rpartition('/')[2])}$"
    return re.sub(title, lambda _: f"# {name.rpartition('/')[2]}", card, count=1, flags=re.MULTILINE)
