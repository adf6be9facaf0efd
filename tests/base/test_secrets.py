"""Secrets are blotted out, and nothing else is touched."""

from __future__ import annotations

import os
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinktrain.base.secrets import command_line, environment_secrets, redact, redact_command, redact_config

SHAPES = {
    "hugging face": "hf_" + "aB3" * 12,
    "openai": "sk-proj-" + "aB3_" * 10,
    "aws": "AKIA" + "ABCD1234" * 2,
    "github": "ghp_" + "x1" * 18,
    "github, fine-grained": "github_pat_" + "x1_" * 18,
    "gitlab": "glpat-" + "x1" * 12,
    "json web token": "eyJ" + "a" * 20 + ".eyJ" + "b" * 20 + "." + "c" * 20,
}
HARMLESS = [
    "the cat sat on a mat",
    "75ea691f0c5c4b1d8a1b2c3d4e5f60718293a4b5",  # a commit
    "of sink.kind token: is no architecture of transformers",
    "bos_token: <sink>, eos_token: '<|endoftext|>'",
    "https://huggingface.co/papers?page=2&q=sinks",
    "ssh://git@github.com/someone/project.git",
    "http://localhost:8080/a/b@c",
    "task-specific-model-number-12345678901234567890",
    "--model.api_key: is missing; give one",
    "--data.path: no such folder; check the path.",
    "TOKENIZERS_PARALLELISM=false",
    "num_key_value_heads: 4, max_token_length: 512",
    "tokens: 12345678, key: 'train/loss'",
    "scikit-learn basic principles of authorization",
    "C:\\Users\\a\\b, \ud800 and \x00",
]


@pytest.fixture(autouse=True)
def no_secrets_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if any(word in name.upper() for word in ("TOKEN", "KEY", "SECRET", "PASSW")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("around", ["{}", "see {}.", '{{"a": "{}"}}', "x={}&y", "/data/{}/model"])
def test_secrets_of_known_shapes(name: str, around: str) -> None:
    assert redact(around.format(SHAPES[name])) == around.format("***")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:hunter2@host/x", "https://me:***@host/x"),
        ("postgres://u:p%40ss@db:5432/x", "postgres://u:***@db:5432/x"),
        ("https://0123456789abcdef0123@host/x.git", "https://***@host/x.git"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': 'Basic ***'}"),
        ("curl -H bearer 0123456789abcdef", "curl -H bearer ***"),
        ("WANDB_API_KEY=" + "a1b2" * 10, "WANDB_API_KEY=***"),
        ("wandb login " + "a1b2" * 10, "wandb login ***"),
        ('{"api_key": "x"}', '{"api_key": "***"}'),
        ("api_key: hunter2", "api_key: ***"),
        ("https://h/x?access_token=hunter2&page=1", "https://h/x?access_token=***&page=1"),
        ("fit --logger.init_args.api_key hunter2 --x 1", "fit --logger.init_args.api_key *** --x 1"),
        ("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\nx",
         "-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----\nx"),
    ],
)  # fmt: skip
def test_secrets_by_what_stands_around_them(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) is text


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "some value", True),
        ("MY_SERVICE_PASSWORD", "correct horse", True),
        ("PGPASSWORD", "battery1", True),
        ("AWS_SECRET_ACCESS_KEY", "/wJalrXUtnFEMI/K7MDENG", True),
        ("GITHUB_TOKEN_2", "some value", True),
        ("my_api_key", "some value", True),
        ("HF_TOKEN", "short", False),
        ("TOKENIZERS_PARALLELISM", "false and long", False),
        ("SSH_AUTH_SOCK", "/tmp/ssh-123/agent", False),
        ("PATH", "/usr/bin:/bin", False),
        ("HF_TOKEN_PATH", "some value", False),
        ("KEYBOARD_LAYOUT", "some value", False),
        ("SSH_KEY", str(Path(__file__)), False),
        ("PYTHONHASHSEED_SECRETLY", "some value", False),
    ],
)
def test_values_of_the_environment(name: str, value: str, secret: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert (value in environment_secrets()) is secret
    assert (redact(f"see {value}!") == "see ***!") is secret


def test_a_value_is_found_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", 'p@ss/"w\\rd')
    assert redact(["https://h/p%40ss%2F%22w%5Crd/x", '{"a": "p@ss/\\"w\\\\rd"}']) == ["https://h/***/x", '{"a": "***"}']


def test_names_of_fields() -> None:
    tree: dict[str, Any] = {
        "api_key": "x", "hfToken": "y", "password": 12345, "bos_token": "<s>", "use_cache": True, "token": None,
        "num_key_value_heads": 4, "credentials": {"user": "u", "more": ["v", None, False]}, "kind": "token",
        "password_file": "p", "list": ({"auth_token": "z"}, Path("a/b")),
    }  # fmt: skip
    assert redact(tree) == {
        **tree, "api_key": "***", "hfToken": "***", "password": "***",
        "credentials": {"user": "***", "more": ["***", None, False]}, "list": ({"auth_token": "***"}, Path("a/b")),
    }  # fmt: skip


def test_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["fit", "--a.api_key", "it's", "--b.token=zwei", "--x", "it's", "--password", "--y", "1"]
    expected = ["fit", "--a.api_key", "***", "--b.token=***", "--x", "***", "--password", "--y", "1"]
    assert redact_command(arguments) == expected
    monkeypatch.setattr(sys, "argv", ["/a/b/sinktrain", "fit", "--c", '{"api_key": "hunter2"}', "--n", "a b"])
    assert command_line() == """sinktrain fit --c '{"api_key": "***"}' --n 'a b'"""


def test_the_config_of_a_model_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "full_attention")
    config = {"layer_types": ["full_attention"], "_name_or_path": "/a/full_attention/b", "eos_token_id": 1}
    assert redact_config(config) == {**config, "_name_or_path": "/a/***/b"}


PLAIN = st.text(string.ascii_letters + " .,/\n")
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PLAIN,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["model", "text", "bos_token", "x.y"]), inner),
    max_leaves=20,
)
WORDS = st.text(string.ascii_letters + string.digits + "$%&@/'\"\\ -_é", min_size=12, max_size=40)


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for item in tree.items() for part in item for leaf in leaves(part)]
    return [leaf for item in tree for leaf in leaves(item)] if isinstance(tree, list | tuple) else [tree]


@given(TREES)
def test_a_tree_without_secrets_comes_back_as_it_was(tree: Any) -> None:
    assert redact(tree) == tree and repr(redact(tree)) == repr(tree)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES, WORDS, PLAIN, PLAIN, st.sampled_from(["value", "key", "list"]))
def test_a_secret_anywhere_in_a_tree_is_gone(tree: Any, secret: str, before: str, after: str, place: str) -> None:
    text = f"{before}{secret}{after}"
    planted: Any = {"value": {"a": text, "b": tree}, "key": {text: tree}, "list": [tree, (text,)]}[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_SERVICE_PASSWORD", secret)
        cleaned = redact(planted)
        assert redact(cleaned) == cleaned
    assert not any(secret in leaf for leaf in leaves(cleaned) if isinstance(leaf, str))
    assert len(leaves(cleaned)) == len(leaves(planted))


@given(st.text(max_size=300))
def test_any_text_can_be_cleaned_and_once_is_enough(text: str) -> None:
    cleaned = redact(text)
    assert redact(cleaned) == cleaned


def test_long_texts_take_no_time() -> None:
    import time

    start = time.perf_counter()
    for text in ("a" * 300_000, "token_" * 50_000, "https://" + "a:" * 100_000, "wandb " * 50_000, "key = " * 50_000):
        redact(text)
    assert time.perf_counter() - start < 10  # a backtracking pattern would take minutes
