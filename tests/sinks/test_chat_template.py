"""A rewritten chat template prints the sinks once, first, and then what the old one printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_templates import BOS_EVERYWHERE, TEMPLATES, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sinktrain.sinks import SinkConfig
from sinktrain.sinks.chat_template import behind_sinks
from sinktrain.sinks.tokenizer import add_sink_tokens, save_tokenizer

TALK = [
    {"role": "system", "content": "you are a dog"},
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "on a mat"},
    {"role": "user", "content": "and the dog ran"},
]
ANSWERED = [*TALK, {"role": "assistant", "content": "to it"}]
CALLS: list[tuple[list[dict[str, str]], dict[str, Any]]] = [
    (TALK, {}),
    (TALK, {"add_generation_prompt": True}),
    (ANSWERED, {}),
    (ANSWERED, {"continue_final_message": True}),
    (TALK[1:], {"add_generation_prompt": True}),
]
ODD = {
    "bos everywhere": BOS_EVERYWHERE,
    "begins with an empty line": "\n\n{{ bos_token }}{{ messages[-1].content }}",
    "begins with spaces": "  {% if true %}x{% endif %}  {{ bos_token }}{{ messages[-1].content }}",
    "begins with a line and a block": "\n  {% if true %}x{% endif %}{{ messages[-1].content }}",
    "eats white space": " \n {%- if true %}x{%- endif %}{{ bos_token }}{{ messages[-1].content }}",
    "is plain text": "say {{ messages[-1].content }}",
    "sets its own": "{% if not bos_token is defined %}{% set bos_token = '<s>' %}{% endif %}"
                    "{{ bos_token }}{{ messages[-1].content }}",
    "asks for it": "{% if bos_token %}yes{% else %}no{% endif %}{{ bos_token }}{{ messages[-1].content }}",
    "sets it in a loop": "{% for m in messages %}{{ bos_token }}{% set bos_token = 'n' %}{{ bos_token }}{{ m.content }}"
                         "{% endfor %}{{ bos_token }}",
}  # fmt: skip


@pytest.mark.parametrize("bos", ["<s>", "<|im_start|>", None, "<'\"\\{{ %} é 😀>"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", [*TEMPLATES, *ODD])
def test_sinks_and_then_what_was_printed_before(
    name: str, count: int, bos: str | None, tokenizer_folder: Path, tmp_path: Path
) -> None:
    if name == "llama2" and bos is None:
        pytest.skip("adds its BOS to a string, so it needs one")
    old = chat_tokenizer(tokenizer_folder, {**TEMPLATES, **ODD}[name], bos)
    new = chat_tokenizer(tokenizer_folder, {**TEMPLATES, **ODD}[name], bos)
    ids = add_sink_tokens(new, SinkConfig(count=count))
    sinks = "".join(SinkConfig(count=count).tokens)
    save_tokenizer(new, tmp_path)
    for some in (new, AutoTokenizer.from_pretrained(tmp_path)):
        for messages, options in CALLS:
            text = old.apply_chat_template(messages, tokenize=False, **options)
            assert some.apply_chat_template(messages, tokenize=False, **options) == sinks + text
            expected = [*ids, *old.apply_chat_template(messages, return_dict=False, **options)]
            assert some.apply_chat_template(messages, return_dict=False, **options) == expected
            assert text and not set(expected[count:]) & set(ids)


def test_the_masks_of_a_template_with_generation_blocks_move_along(tokenizer_folder: Path) -> None:
    old, new = (chat_tokenizer(tokenizer_folder, TEMPLATES["generation"]) for _ in range(2))
    add_sink_tokens(new, SinkConfig(count=2))
    masks = [
        each.apply_chat_template(ANSWERED, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]
        for each in (old, new)
    ]
    assert masks[1] == [0, 0, *masks[0]] and sum(masks[0]) > 5


def test_several_templates_and_none(tokenizer_folder: Path, tmp_path: Path) -> None:
    both = {"default": TEMPLATES["llama3"], "tool_use": TEMPLATES["generation"]}
    old, new = (chat_tokenizer(tokenizer_folder, dict(both)) for _ in range(2))
    add_sink_tokens(new, SinkConfig())
    save_tokenizer(new, tmp_path)
    for some in (new, AutoTokenizer.from_pretrained(tmp_path)):
        assert set(some.chat_template) == set(both)
        for name in both:
            given = {"chat_template": name, "tokenize": False}
            assert some.apply_chat_template(TALK, **given) == "<sink>" + old.apply_chat_template(TALK, **given)
    without = chat_tokenizer(tokenizer_folder, None)
    add_sink_tokens(without, SinkConfig())
    assert without.chat_template is None


def test_other_kinds_leave_the_template_alone(tokenizer_folder: Path) -> None:
    for kind in ("none", "zero"):
        tokenizer = chat_tokenizer(tokenizer_folder, TEMPLATES["llama3"])
        add_sink_tokens(tokenizer, SinkConfig(kind=kind))  # type: ignore[arg-type]
        assert tokenizer.chat_template == TEMPLATES["llama3"] and tokenizer.bos_token == "<s>"


WHITE = st.text(" \n\t", max_size=4)


@given(
    before=WHITE, left=st.sampled_from(["", "-"]), inside=WHITE, right=st.sampled_from(["", "-"]),
    after=WHITE, bos=st.text(min_size=1, max_size=5),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_white_space_of_any_kind_stays(before: str, left: str, inside: str, right: str, after: str, bos: str) -> None:
    """Rendered by transformers, and by a plain Jinja that keeps every line's end, as other engines do."""
    from jinja2.sandbox import SandboxedEnvironment
    from transformers.utils.chat_template_utils import render_jinja_template

    template = f"{before}{{%{left} if true {right}%}}{inside}{{{{ bos_token }}}}{{% endif %}}{after}x"
    new = behind_sinks(template, ["<sink>"], bos)
    for each, value in ((template, bos), (new, "<sink>")):
        text = render_jinja_template([[{"role": "user", "content": "x"}]], chat_template=each, bos_token=value)[0][0]
        plain = SandboxedEnvironment().from_string(each).render(bos_token=value)
        if each == template:
            expected, expected_plain = text, plain
    assert text == "<sink>" + expected
    if not before:
        assert plain == "<sink>" + expected_plain
