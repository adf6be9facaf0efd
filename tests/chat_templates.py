"""Chat templates as models have them, and a tokenizer that holds their special tokens."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nyou are a cat<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2 has it, with a system prompt of its own."""

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[1:] %}"
    "{% set system = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}"
    "{% else %}{% set told = messages %}{% set system = '' %}{% endif %}"
    "{% for m in told %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant.') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}{{ system if loop.first else '' }}"
    "{{ m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

LLAMA3 = """
{{- bos_token }}
{%- macro header(role) %}
{{- '<|start|>' + role + '<|stop|>\n\n' }}
{%- endmacro %}
{%- for m in messages %}
    {%- if m.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Unknown role ' + m.role) }}
    {%- endif %}
    {{- header(m.role) + m.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
"""

GENERATION = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

BOS_EVERYWHERE = (
    "   {% if bos_token is defined and bos_token %}\n  {% set start = bos_token %}\n{% endif %}\n"
    "{% macro mark() %}{{ bos_token }}{% endmacro %}"
    "{% for m in messages %}{% if loop.first %}{{ start }}{% else %}{{ bos_token }}{% endif %}"
    "{{ mark() }}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token ~ 'assistant: ' }}{% endif %}"
)
"""Says it in loops, conditions and a macro, and begins with white space before a block."""

TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "generation": GENERATION}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>"]


def chat_tokenizer(
    folder: Path, template: str | dict[str, str] | None, bos: str | None = "<s>"
) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder` with a BOS, the special tokens of all templates, and one template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    roles = {} if bos is None else {"bos_token": bos}
    tokenizer.add_special_tokens({**roles, "additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer
