"""Tiny models to generate with: with k sinks or none, and with a chat template."""

from __future__ import annotations

from pathlib import Path

from conftest import tiny_model
from transformers import AutoTokenizer

from sinktrain.evaluation.subject import ModelOptions, Subject
from sinktrain.sinks.config import SinkConfig
from sinktrain.sinks.embedding import grow_embedding
from sinktrain.sinks.tokenizer import add_sink_tokens, save_tokenizer

APPENDS = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""As ChatML; its BOS is the sink of a model that has one."""

BOS_EVERY_TURN = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[{{ m.content }}]"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
"""As Llama 2 had it."""


def small_subject(
    tokenizer_folder: Path, sinks: int = 1, template: str | None = APPENDS, seed: int = 0, rewritten: bool = False
) -> Subject:
    """A random Llama; its tokenizer has `sinks` sink tokens and the special tokens of the templates.

    `rewritten`: the template was there before the sinks, so that it prints them; otherwise it is as models had it that
    were exported when templates were not rewritten.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    model = tiny_model("llama", vocab_size=len(tokenizer), seed=seed)
    config = SinkConfig(kind="token", count=sinks) if sinks else SinkConfig(kind="none")
    if rewritten:
        tokenizer.bos_token, tokenizer.chat_template = "<|turn|>", template
    ids = add_sink_tokens(tokenizer, config)
    grow_embedding(model, len(tokenizer), ids, config)
    if not sinks:
        tokenizer.bos_token = "<|turn|>"
    if not rewritten:
        tokenizer.chat_template = template
    return Subject(model.eval(), tokenizer, ids, ModelOptions("small"), None)


def save_subject(subject: Subject, folder: Path) -> Path:
    """As `from_pretrained` loads it."""
    subject.model.save_pretrained(folder)
    save_tokenizer(subject.tokenizer, folder)
    return folder
