"""The model card: what the sink is, how to stream with it, and what was found."""

from __future__ import annotations

from typing import Any

from sinktrain.sinks.tokenizer import sink_ids_of
from sinktrain.training.checkpoints import Trained

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- attention-sink
- streaming
- sinktrain
---

# {name}

{about}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0], skip_special_tokens=True))
```

To stream on and on in constant memory, let `generate` use the cache in this folder's `custom_generate/generate.py`
(read it first: it is code that runs on your machine):

```python
model.generate(**ids, custom_generate="{name}", trust_remote_code=True, max_new_tokens=100_000)
```

## Is the sink enough?

{verdict}

## Limits

A streaming cache forgets what has left it: the model goes on fluently, but does not remember. Attention sinks are
described in Xiao et al., Efficient Streaming Language Models with Attention Sinks, ICLR 2024 (arXiv 2309.17453).
"""


_ADAPTERS = """

Its adapters (LoRA) are not in these weights but beside them:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "{name}/adapter")
```"""

_TUNED = {
    "full": "",
    "lora": " Low-rank adapters (LoRA) of rank {rank} and the row of the sink were trained, and nothing else.",
    "sink_only": " Nothing but the sink was trained: every other weight is that of the model that it was made from.",
    "embed": " The sink and the norms were trained; every other weight is that of the model that it was made from.",
}


def model_card(trained: Trained, name: str, verdict: dict[str, Any] | None, kept: bool = False) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        trained: the model, its tokenizer and sink.
        name: of the exported folder.
        verdict: the record of `sinktrain verify`, if there is one.
        kept: its adapters lie in the folder `adapter`, and are not in its weights.
    """
    about = _about(trained) + _TUNED[trained.tuning.mode].format(rank=trained.tuning.rank)
    about += _ADAPTERS.format(name=name) if kept else ""
    return _CARD.format(name=name, about=about, verdict=_verdict(verdict))


def _about(trained: Trained) -> str:
    count = len(sink_ids_of(trained.tokenizer))
    kind, size = type(trained.model).__name__, f"{sum(p.numel() for p in trained.model.parameters()):,}"
    if trained.sink.has_outlet:
        what = "a logit of 0" if trained.sink.kind == "zero" else "a learned logit"
        return (
            f"A {kind} with {size} parameters. The softmax of every head has {what} beside those of the text, whose "
            "value is zero: its attention sink takes no place in the key-value cache and is never evicted. It "
            "needs transformers 5.18 or later."
        )
    if count == 0:
        return f"A {kind} with {size} parameters, trained without a sink."
    tokens = " ".join(f"`{token}`" for token in trained.sink.tokens)
    return (
        f"A {kind} with {size} parameters, trained with {tokens} in front of every sample as its attention sink. "
        "The tokenizer puts it in front of every text as BOS. To stream forever, keep the first "
        f"{count} position{'s' if count > 1 else ''} and the most recent ones in the key-value cache, and evict "
        "the rest."
    )


def _verdict(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Not judged."
    rows = [pair for pair in [*record["comparisons"], record.get("needed")] if pair]
    table = ["| caches | tokens | difference in NLL (nats) | 95% interval |", "|---|---|---|---|"]
    table += [
        f"| {row['a']} minus {row['b']} | {row['tokens']:,} | {row['difference']:+.4f} "
        f"| {row['interval'][0]:+.4f} to {row['interval'][1]:+.4f} |"
        for row in rows
    ]
    return " ".join(record["sentences"]) + "\n\n" + "\n".join(table)
