"""A chat feeds exactly the tokens of the whole conversation rendered at once, with the sink once, and keeps no text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from small_subjects import APPENDS, BOS_EVERY_TURN, small_subject

from sinktrain.base.errors import UserError
from sinktrain.evaluation.subject import Subject
from sinktrain.evaluation.turns import Turns, end_ids
from sinktrain.generation.conversation import Conversation
from sinktrain.generation.endless import Stream, choose_cache, open_stream
from sinktrain.generation.sampling import Sampler, Sampling

SYSTEM = APPENDS.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|turn|>system\nyou are a cat<|end|>\n{% endif %}",
)
MESSAGES = ["the cat sat", "on a mat \n and", "the dog ran", "home"]


class Script:
    """Draws what the test says."""

    def __init__(self, subject: Subject, replies: Sequence[list[int]]) -> None:
        self.tokens = [token for reply in replies for token in reply]

    def __call__(self, logits: object) -> int:
        return self.tokens.pop(0)


def recorded(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All ids that the model is given from now on."""
    fed: list[int] = []
    run = Stream._run

    def record(self: Stream, ids: Sequence[int]) -> object:
        fed.extend(ids)
        return run(self, ids)

    monkeypatch.setattr(Stream, "_run", record)
    return fed


def conversation(subject: Subject, system: str | None = None, most: int = 40) -> Conversation:
    stream = open_stream(subject, choose_cache(subject, "4+28"), "cache", Sampler(subject, Sampling(0)))
    return Conversation(stream, Turns(subject, system), end_ids(subject), most)


@pytest.mark.parametrize(("sinks", "rewritten"), [(0, False), (1, False), (2, False), (1, True), (2, True)])
@pytest.mark.parametrize("template", [APPENDS, BOS_EVERY_TURN, SYSTEM])
@pytest.mark.parametrize("system", [None, "we all saw"])
def test_what_is_fed_is_the_conversation_rendered_once(
    sinks: int,
    rewritten: bool,
    template: str,
    system: str | None,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = small_subject(tokenizer_folder, sinks, template, rewritten=rewritten)
    tokenizer = subject.tokenizer
    replies = ["to it", " while we", "they went\n", "again"]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    ids = [tokenizer.encode(reply, add_special_tokens=False) for reply in replies]
    talk = conversation(subject, system)
    talk.stream.sampler = Script(subject, [[*reply, end] for reply in ids])  # type: ignore[assignment]
    fed = recorded(talk.stream, monkeypatch)
    assert ["".join(talk.reply(message)) for message in MESSAGES] == replies

    messages = [] if system is None else [{"role": "system", "content": system}]
    for message, reply in zip(MESSAGES, replies, strict=True):
        messages += [{"role": "user", "content": message}, {"role": "assistant", "content": reply}]
    text = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True) + replies[-1]
    whole = [token for token in tokenizer.encode(text, add_special_tokens=False) if token not in subject.sink_ids]
    assert fed == [*subject.sink_ids, *whole]
    assert len(whole) > 32  # more than the cache holds
    if rewritten:  # what any engine feeds that uses the template, whose BOS is the old one
        assert fed == [
            *tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False),
            *ids[-1],
        ]
        old = small_subject(tokenizer_folder, 0, template).tokenizer
        assert whole == old.encode(text.removeprefix("".join(tokenizer.convert_ids_to_tokens(subject.sink_ids))),
                                   add_special_tokens=False)  # fmt: skip
        if template == BOS_EVERY_TURN:
            assert fed.count(tokenizer.convert_tokens_to_ids("<|turn|>")) == len(MESSAGES)
    elif template == BOS_EVERY_TURN and sinks:
        assert text.count("<sink") == len(MESSAGES)  # the template would have had it in each turn


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("sinks", [1, 2])
def test_the_sink_stands_at_the_start_and_nowhere_else(
    sinks: int, rewritten: bool, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = small_subject(tokenizer_folder, sinks, rewritten=rewritten)
    talk = conversation(subject)
    fed = recorded(talk.stream, monkeypatch)
    typed = "".join(subject.tokenizer.convert_ids_to_tokens(subject.sink_ids))
    for message in ("the cat", f"{typed} sat {typed}", "home"):
        assert "".join(talk.reply(message))
    assert fed[:sinks] == subject.sink_ids and not set(fed[sinks:]) & set(subject.sink_ids) and len(fed) > 100


def test_a_reply_that_was_stopped_is_closed_before_the_next_message(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = small_subject(tokenizer_folder, 1)
    tokenizer = subject.tokenizer
    talk = conversation(subject)
    fed = recorded(talk.stream, monkeypatch)
    heard = list(talk.reply("the cat", lambda: talk.stream.drawn == 5))
    assert talk.stream.drawn == 5 and "".join(heard)
    half = fed[len(talk.turns.first("the cat")) :]
    before = len(fed)
    list(talk.reply("and the dog"))
    turn = fed[before : before + 1 + len(talk.turns.following("and the dog"))]
    assert tokenizer.decode([*half, turn[0]]) == "".join(heard)  # the last token of the half reply comes first
    assert tokenizer.decode(turn[1:]) == "<|end|>\n<|turn|>user\nand the dog<|end|>\n<|turn|>assistant\n"


def test_a_reply_ends_at_its_limit_and_a_reset_begins_anew(tokenizer_folder: Path) -> None:
    talk = conversation(small_subject(tokenizer_folder), most=7)
    first = list(talk.reply("the cat"))
    assert talk.stream.drawn == 7
    assert list(talk.reply("the cat")) != first
    talk.reset()
    assert list(talk.reply("the cat")) == first and talk.stream.seen < 30


def test_the_work_of_a_turn_does_not_depend_on_the_turns_before(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = small_subject(tokenizer_folder)
    talk = conversation(subject, most=3)
    fed = recorded(talk.stream, monkeypatch)
    rendered: list[int] = []
    render = Turns._render
    monkeypatch.setattr(
        Turns, "_render", lambda self, messages: (rendered.append(len(messages)), render(self, messages))[1]
    )
    lengths = []
    for _ in range(30):
        before = len(fed)
        list(talk.reply("the dog ran home"))
        lengths.append(len(fed) - before)
    assert len(set(lengths[1:])) == 1 and max(rendered) == 3
    assert vars(talk).keys() == {"stream", "turns", "most", "ends", "unfed"} and len(talk.unfed) == 1


REFUSED = {
    "no template": (None, None, "no chat template"),
    "numbers the turns": (APPENDS.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }} of {{ messages|length }}"),
                          None, "rewrites earlier turns"),
    "numbers them upwards": (APPENDS.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }}"), None, "rewrites"),
    "numbers the questions": (APPENDS.replace("{{ m.role }}", "{{ m.role }}{{ loop.index if m.role == 'user' }}"),
                              None, "rewrites earlier turns"),
    "drops the first": ("{% for m in messages[-3:] %}[{{ m.role }}: {{ m.content }}]{% endfor %}", None, "rewrites"),
    "newest first": ("{% for m in messages|reverse %}[{{ m.role }}: {{ m.content }}]{% endfor %}", None, "rewrites"),
    "no system": (APPENDS.replace("{{ m.role }}", "{% if m.role == 'system' %}{{ raise_exception('No system.') }}"
                                  "{% endif %}{{ m.role }}"), "be kind", "--system: the chat template refuses it"),
    "system comes last": ("{% for m in messages %}{% if m.role == 'user' %}[{% if loop.last %}{{ messages[0].content }}"
                          "{% endif %}{{ m.content }}]{% elif m.role == 'assistant' %}{{ m.content }}<|end|>{% endif %}"
                          "{% endfor %}", "be kind", "leave out --system"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_template_that_does_not_append_is_refused(name: str, tokenizer_folder: Path) -> None:
    template, system, words = REFUSED[name]
    subject = small_subject(tokenizer_folder, 1, template)
    with pytest.raises(UserError, match=words) as error:
        Turns(subject, system)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_a_message_that_makes_a_template_rewrite_is_refused(tokenizer_folder: Path) -> None:
    forgets = "{% if 'forget' in messages[-1].content %}forgotten{% else %}" + APPENDS + "{% endif %}"
    turns = Turns(small_subject(tokenizer_folder, 1, forgets))
    assert turns.following("the cat")
    with pytest.raises(UserError, match="rewrites earlier turns"):
        turns.following("forget the cat")
