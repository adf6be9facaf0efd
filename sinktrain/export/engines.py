"""The card's section on engines: the settings that keep the sink, and whether sinktrain's own tests run them."""

from __future__ import annotations

_HEAD = """## Other engines

{what}

| engine | what to do | written for | run by sinktrain's tests |
|---|---|---|---|
| transformers | `custom_generate`, as above | 5.23.0 | yes |
"""

_LLAMA_CPP = (
    "| llama.cpp | `sinktrain gguf`, then `llama-server --context-shift`: BOS, which is the sink, is kept when the "
    "context is shifted | 2026-10 | yes |"
)
_TOKEN = (
    _LLAMA_CPP,
    '| MLC-LLM | in `mlc-chat-config.json`: `"sliding_window_size": {size}, "attention_sink_size": {sinks}, '
    '"context_window_size": -1` (experimental there) | 0.1.dev0, commit 3217a5b | not run here |',
    "| TensorRT-LLM | `KvCacheConfig(sink_token_length={sinks}, max_attention_window=[{size}])`, for its TensorRT "
    "backend; deprecated, and ignored by the PyTorch backend, since 2026-05 (pull request 14275) | 1.0 "
    "| not run here |",
    "| text-generation-webui | `--streaming-llm --attention-sink-size {sinks}`, with its llama.cpp loader | those of "
    "2024 | not run here |",
    "| vLLM | nothing: the tokenizer puts the sink in front. It evicts nothing, so a text ends with the model's window "
    "| 0.32 | where it is installed |",
    "| SGLang | the same | 0.5 | not run here |",
)
_OUTLET = (
    "| llama.cpp | `sinktrain gguf --llama_cpp CHECKOUT`, with a llama.cpp that knows `granite_swa` | 2026-10 "
    "| where there is a checkout |",
    "| all others | whether they know `granite_swa` | | not run here |",
)


def other_engines(kind: str, sinks: int, cache: str) -> str:
    """The section, for a sink kind, the number of sink tokens and the cache "x+y" that is recommended.

    A column says whether sinktrain's own tests run the engine, always or where it is set up; a version is what the
    setting was written for.
    """
    rows: tuple[str, ...]
    if kind in ("zero", "logit"):
        what, rows = "The sink is a logit in every head: wherever the architecture runs, it is there.", _OUTLET
    elif sinks == 0:
        return ""
    else:
        what = (
            "What runs the tokenizer's `tokenizer.json` has the sink in front of every text. To keep it there forever:"
        )
        rows = _TOKEN if sinks == 1 else _TOKEN[1:]
    size = sum(map(int, cache.split("+")))
    filled = (row.replace("{size}", str(size)).replace("{sinks}", str(sinks)) for row in rows)
    return _HEAD.format(what=what) + "\n".join(filled)
