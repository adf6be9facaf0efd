"""Passwords, tokens and keys are blotted out of whatever is written down: `redact`.

A secret is known by its look (the prefixes of well-known services, a password in an URL), by the name that it goes
under (`api_key: ...`, `--logger.init_args.api_key ...`), or because an environment variable such as HF_TOKEN holds it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sinktrain.base.secret_shapes import MARK, looks_secret, without_shapes

T = TypeVar("T")

_SHORTEST = 8
_VARIABLE = re.compile(
    r"(?:^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY)S?(?:_|\d|$)"
    r"|(PASSWORD|PASSWD|TOKEN|SECRET|APIKEY)$",
    re.IGNORECASE,
)
_NO_VALUE = re.compile(r"_(PATH|FILE|DIR|SOCK|URL|URI|ENDPOINT|HOST|TYPE|LIMIT|COUNT|LENGTH)$", re.IGNORECASE)
_SWITCHES = {"disabled", "required", "optional", "undefined"}


def redact(tree: T, also: Iterable[str] = ()) -> T:
    """`tree` with `***` in the place of every secret, and everything else as it was.

    Args:
        tree: a text, or dicts, lists and tuples of texts, numbers and the like. In a dict, what goes under a name such
            as `api_key` is a secret whatever it looks like.
        also: further texts that are secrets.
    """
    values = {spelled for value in (*environment_secrets(), *also) if value for spelled in _spellings(value)}
    longest_first = sorted(values, key=lambda value: (-len(value), value))
    patterns = (re.escape(value).replace("\\ ", "\\s+") for value in longest_first)  # YAML breaks lines at a space
    known = re.compile("|".join(patterns)) if values else None
    cleaned: T = _clean(tree, known, hide=False)
    return cleaned


def redact_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model, without what secrets there can be in it, and still the config of that model.

    Secrets of the environment are looked for only where it says what it was loaded from: a variable may hold a word
    that the config needs.
    """
    known = {name: redact(value) for name, value in config.items() if name in ("_name_or_path", "name_or_path")}
    cleaned: dict[str, Any] = _clean(config, None, hide=False)
    return {**cleaned, **known}


def _clean(tree: Any, known: re.Pattern[str] | None, *, hide: bool) -> Any:
    if isinstance(tree, dict):
        return {
            _clean(key, known, hide=False): _clean(value, known, hide=hide or (type(key) is str and looks_secret(key)))
            for key, value in tree.items()
        }
    if type(tree) in (list, tuple):
        return type(tree)(_clean(item, known, hide=hide) for item in tree)
    if isinstance(tree, Path):
        return type(tree)(_clean(str(tree), known, hide=hide))
    if hide and type(tree) in (str, int, float) and tree != "":
        return MARK
    if not isinstance(tree, str):
        return tree
    cleaned = without_shapes(tree if known is None else known.sub(MARK, tree))
    return tree if cleaned == tree else cleaned


def environment_secrets() -> list[str]:
    """The values of the environment variables that are secrets by their name, such as HF_TOKEN.

    Left out are values of fewer than 8 characters, switches, and files that exist: SSH_KEY may name one.
    """
    found = []
    for name, value in os.environ.items():
        if len(value) < _SHORTEST or value.lower() in _SWITCHES or _NO_VALUE.search(name) or not _VARIABLE.search(name):
            continue
        if not (value.startswith(("/", "~")) and Path(value).expanduser().exists()):
            found.append(value)
    return found


def _spellings(value: str) -> set[str]:
    """A secret as it stands, in an URL, in JSON and in YAML."""
    return {value, quote(value, safe=""), json.dumps(value)[1:-1], value.replace("'", "''")}


def option_secrets(arguments: Sequence[str]) -> list[str]:
    """What a command line gives to options such as `--logger.init_args.api_key`."""
    return [value for value in _secret_values(arguments).values() if len(value) > 3]


def redact_command(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line without what is secret in them."""
    values, cleaned = _secret_values(arguments), []
    for place, argument in enumerate(arguments):
        if place in values:
            name, equals, _ = argument.partition("=")
            cleaned.append(f"{name}={MARK}" if argument.startswith("-") and equals else MARK)
        else:
            cleaned.append(redact(argument, also=option_secrets(arguments)))
    return cleaned


def _secret_values(arguments: Sequence[str]) -> dict[int, str]:
    """By its place, each argument that holds the value of a secret option."""
    found: dict[int, str] = {}
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not argument.startswith("-") or not looks_secret(name):
            continue
        if equals:
            found[place] = value
        elif place + 1 < len(arguments) and not arguments[place + 1].startswith("--"):
            found[place + 1] = arguments[place + 1]
    return found


def command_line() -> str:
    """The command line of this process, fit to be written down."""
    return shlex.join([Path(sys.argv[0]).name, *redact_command(sys.argv[1:])])
