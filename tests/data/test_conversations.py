"""What is trained on in a conversation is what the assistant says and the token that ends it, in any template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import CHATML, TEMPLATES, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sinktrain.base.errors import UserError
from sinktrain.data.conversation_tokens import encode_conversations
from sinktrain.data.conversations import Messages, Rendered, Template, as_conversation
from sinktrain.data.readers import Place
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.tokenizer import add_sink_tokens

ENDS = {"chatml": "<|im_end|>", "llama2": " <|endoftext|>", "llama3": "<|eot|>", "generation": "<|im_end|>"}
BEFORE = {"llama2": " "}  # what the template puts between its header and the reply
PLACE = Place("talks.jsonl", "messages", 7)

says = st.text(min_size=1, max_size=12).filter(lambda text: "\r" not in text)


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    """Turns that alternate, as every template takes them, with or without a system prompt."""
    messages = [{"role": "system", "content": draw(says)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages += [{"role": "user", "content": draw(says)}, {"role": "assistant", "content": draw(says)}]
    return messages[: len(messages) - draw(st.integers(0, 1))] if len(messages) > 3 else messages


@pytest.fixture(scope="module")
def templates(tokenizer_folder: Path) -> dict[str, Template]:
    return {
        name: Template(chat_tokenizer(tokenizer_folder, template), "small", "talks.jsonl")
        for name, template in TEMPLATES.items()
    }


def tokens_of(template: Template, messages: Messages) -> tuple[list[int], list[int]]:
    rendered = template.render(messages, 1)
    ((ids, trained),) = encode_conversations(template.backend, [rendered], np.dtype("<u2"))
    return ids.tolist(), trained.tolist()


def runs(tokenizer: Any, ids: list[int], trained: list[int]) -> list[str]:
    """The text of each unbroken run of tokens that are trained on."""
    found: list[list[int]] = []
    for number, (token, flag) in enumerate(zip(ids, trained, strict=True)):
        if flag and not (number and trained[number - 1]):
            found.append([])
        if flag:
            found[-1].append(token)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in found]


@pytest.mark.parametrize("name", list(TEMPLATES))
@given(messages=conversations())
@settings(max_examples=60, deadline=None)
def test_trained_tokens_spell_what_the_assistant_says(
    name: str, templates: dict[str, Template], messages: Messages
) -> None:
    template = templates[name]
    ids, trained = tokens_of(template, messages)
    assert ids == template.tokenizer.apply_chat_template(messages, return_dict=False)
    expected = [
        BEFORE.get(name, "") + (each["content"].strip() if name == "llama3" else each["content"]) + ENDS[name]
        for each in messages
        if each["role"] == "assistant"
    ]
    assert runs(template.tokenizer, ids, trained) == expected


@given(messages=conversations())
@settings(max_examples=60, deadline=None)
def test_blocks_are_those_of_transformers(templates: dict[str, Template], messages: Messages) -> None:
    template = templates["generation"]
    mask = template.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert tokens_of(template, messages)[1] == mask["assistant_masks"]


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_what_is_not_trained_on_is_what_is_fed(name: str, templates: dict[str, Template]) -> None:
    """Up to a turn of the assistant, the tokens are the prompt that a chat would give the model."""
    template = templates[name]
    messages = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "and the dog"},
        {"role": "assistant", "content": "ran home"},
    ]
    ids, trained = tokens_of(template, messages)
    for turn in (1, 3):
        prompt = template.tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)] == prompt and not trained[len(prompt) - 1] and trained[len(prompt)]


def test_a_conversation_that_the_assistant_begins(templates: dict[str, Template]) -> None:
    template = templates["chatml"]
    messages = [{"role": "assistant", "content": "the cat"}, {"role": "user", "content": "sat"}]
    ids, trained = tokens_of(template, messages)
    assert runs(template.tokenizer, ids, trained) == ["the cat<|im_end|>"]
    empty = [{"role": "user", "content": "sat"}, {"role": "assistant", "content": ""}]
    assert runs(template.tokenizer, *tokens_of(template, empty)) == ["<|im_end|>"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("rewritten", [True, False])
def test_a_tokenizer_with_sinks_writes_none(name: str, count: int, rewritten: bool, tokenizer_folder: Path) -> None:
    """As a tokenizer without writes; of models exported with the old template, whose BOS is lost, all but that."""
    plain = Template(chat_tokenizer(tokenizer_folder, TEMPLATES[name]), "small", "talks.jsonl")
    tokenizer = chat_tokenizer(tokenizer_folder, TEMPLATES[name])
    ids = add_sink_tokens(tokenizer, SinkConfig(count=count))
    if not rewritten:
        tokenizer.chat_template = TEMPLATES[name]
    written = tokenizer.decode(ids)
    messages = [
        {"role": "user", "content": f"the {written} cat"},
        {"role": "assistant", "content": f"sat {written}"},
    ]
    found = tokens_of(Template(tokenizer, "small", "talks.jsonl"), messages)
    tokens, trained = tokens_of(plain, messages)
    if not rewritten:
        kept = [number for number, token in enumerate(tokens) if token != tokenizer.convert_tokens_to_ids("<s>")]
        tokens, trained = ([values[number] for number in kept] for values in (tokens, trained))
    assert found == (tokens, trained) and not set(found[0]) & set(ids)


def test_offsets_of_a_sentencepiece_like_tokenizer() -> None:
    """Spaces are letters there, one is put in front, and several tokens can share one character."""
    text = "<s>[INST] the cat é [/INST] on a mat 😀 </s>"
    letters = sorted({*text.replace(" ", "▁")} - {"é", "😀"})
    spelled = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {token: number for number, token in enumerate(spelled)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATES["llama2"]
    messages = [{"role": "user", "content": "the cat é"}, {"role": "assistant", "content": "on a mat 😀"}]
    ids, trained = tokens_of(Template(tokenizer, "small", "talks.jsonl"), messages)
    words = tokenizer.convert_ids_to_tokens([token for token, flag in zip(ids, trained, strict=True) if flag])
    assert "".join(words) == "▁on▁a▁mat▁<0xF0><0x9F><0x98><0x80>▁</s>" and not sum(
        trained[: ids.index(vocabulary["/"])]
    )


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=20),
    st.lists(st.integers(0, 6), max_size=8),
)
def test_tokens_that_hold_any_of_a_span(sizes: list[int], gaps: list[int]) -> None:
    """Against looking at every character."""
    text = "".join(chr(97 + number) * size for number, size in enumerate(sizes))
    backend = Tokenizer(models.WordLevel({chr(97 + n) * size: n for n, size in enumerate(sizes)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"(.)\1*"), "isolated")
    edges = [min(edge, len(text)) for edge in np.cumsum(gaps).tolist()]
    spans = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False) if a < b]
    ((ids, trained),) = encode_conversations(backend, [Rendered(text, spans)], np.dtype("<u2"))
    flags = [any(a <= place < b for a, b in spans) for place in range(len(text))]
    ends = np.cumsum(sizes)
    expected = [any(flags[end - size : end]) for size, end in zip(sizes, ends.tolist(), strict=True)]
    assert ids.tolist() == list(range(len(sizes))) and trained.astype(bool).tolist() == expected


def test_offsets_are_not_those_that_a_post_processor_trims(tokenizer_folder: Path) -> None:
    tokenizer = chat_tokenizer(tokenizer_folder, CHATML)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "  the cat   "}]
    template = Template(tokenizer, "small", "talks.jsonl")
    assert runs(tokenizer, *tokens_of(template, messages)) == ["  the cat   <|im_end|>"]


def test_what_a_template_and_a_reply_spell_together_is_trained_on() -> None:
    backend = Tokenizer(models.BPE(vocab={"Ċ": 0, "ĊĊ": 1, "a": 2, ":": 3}, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ':\n' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ ':\n' }}{% endif %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\na"}]
    assert tokens_of(Template(tokenizer, "small", "x"), messages) == ([3, 0, 2, 3, 1, 2], [0, 0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hello", "row 7: its field 'messages' holds str, not a list of messages"),
        ({"role": "user"}, "holds dict, not a list"),
        (["hello"], "its message 1 is str; give each message a role and content"),
        ([{"role": "user", "content": "a"}, {"role": None, "content": "b"}], "its message 2 has no role"),
        ([{"from": "human", "value": "a"}], "its message 1 has no role"),
        ([{"role": "user", "content": None}], "its message 1 has no content"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "its message 1 has a content that is not text",
        ),
    ],
)
def test_rows_that_are_no_conversation(value: object, words: str) -> None:
    with pytest.raises(UserError) as raised:
        as_conversation(value, PLACE)
    sentence = str(raised.value)
    assert words in sentence and sentence.startswith("--source talks.jsonl: row 7:") and sentence.endswith(".")


def test_rows_without_a_turn_of_the_assistant_are_empty() -> None:
    assert as_conversation(None, PLACE) == as_conversation([], PLACE) == ""
    assert as_conversation([{"role": "user", "content": "a"}], PLACE) == ""
    assert as_conversation([{"role": "assistant", "content": "é", "name": None}], PLACE) == (
        '[{"role": "assistant", "content": "é"}]'
    )


REFUSED = {
    "unknown role": (TEMPLATES["llama3"], [{"role": "poet", "content": "a"}, {"role": "assistant", "content": "b"}],
                     r"row 1,234: the chat template refuses the conversation \(Unknown role poet\)"),
    "two of the same": (TEMPLATES["llama2"], [{"role": "user", "content": "a"}, {"role": "user", "content": "b"},
                                              {"role": "assistant", "content": "c"}], "Roles must alternate"),
    "rewrites": (CHATML.replace("{{ '<|im_start|>' + m", "{{ loop.length ~ '<|im_start|>' + m")
                 .replace("m['content']", "m['content'] | upper"),
                 [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                  {"role": "user", "content": "c"}], r"once there is more of it \(--source talks.jsonl, row 1,234\)"),
    "leaves the sandbox": ("{{ messages.__class__.__mro__ }}{{ messages[0]['content'] }}",
                           [{"role": "assistant", "content": "b"}], "refuses the conversation"),
}  # fmt: skip


THINKS = {
    "in the last turn alone": CHATML.replace(
        "m['role'] + '\n' + ",
        "m['role'] + '\n' + ('<think></think>' if loop.last and m['role'] == 'assistant' else '') + ",
    ),
    "where a reply begins": CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif"),
    "and counts": CHATML.replace("{{ '<|im_start|>' + m", "{{ loop.length ~ '<|im_start|>' + m"),
}
"""Templates that write a turn otherwise once there are more, as Qwen 3's and R1's do."""


@pytest.mark.parametrize("name", list(THINKS))
@given(messages=conversations())
@settings(max_examples=40, deadline=None)
def test_turns_that_are_written_otherwise_later(name: str, tokenizer_folder: Path, messages: Messages) -> None:
    messages = [{**each, "content": each["content"].strip() or "a"} for each in messages]
    template = Template(chat_tokenizer(tokenizer_folder, THINKS[name]), "small", "talks.jsonl")
    ids, trained = tokens_of(template, messages)
    assert ids == template.tokenizer.apply_chat_template(messages, return_dict=False)
    expected = [each["content"] + "<|im_end|>" for each in messages if each["role"] == "assistant"]
    found = runs(template.tokenizer, ids, trained)
    if name == "in the last turn alone" and messages[-1]["role"] == "assistant":  # what a reply begins with counts
        expected[-1] = "<think></think>" + expected[-1]
    assert [each.removeprefix("\n") for each in found] == [each.removeprefix("\n") for each in expected]


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_a_template_refuses(name: str, tokenizer_folder: Path) -> None:
    source, messages, words = REFUSED[name]
    template = Template(chat_tokenizer(tokenizer_folder, source), "small", "talks.jsonl")
    with pytest.raises(UserError, match=words) as raised:
        template.render(messages, 1234)
    assert str(raised.value).endswith(".") and "\n" not in str(raised.value)


def test_tokenizers_without_a_template(tokenizer_folder: Path) -> None:
    for given_template in (None, {"tool_use": CHATML}):
        with pytest.raises(UserError, match=r"--tokenizer small: has no chat template"):
            Template(chat_tokenizer(tokenizer_folder, given_template), "small", "talks.jsonl")
