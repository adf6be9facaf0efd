"""The model card: what the sink is, how to stream with it, what was found, how it was trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinktrain.export.engines import other_engines
from sinktrain.sinks.tokenizer import sink_ids_of
from sinktrain.training.checkpoints import Trained

PICTURE = "caches.png"
"""The picture's file, beside the card."""

_STREAM = """## Stream with it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, custom_generate="{name}", trust_remote_code=True, max_new_tokens=2000)[0]))
```

`generate` then uses the cache in this folder's `custom_generate/generate.py` (read it first: it is code that runs on
your machine), which keeps {kept} and the most recent positions, {cache}, in memory that does not grow; `cache="x+y"`
makes it another size. Without `custom_generate` it is a model like any other. Ids of a chat come from
`tokenizer.apply_chat_template`, which puts the sink in front by itself: a text that it rendered is tokenized with
`add_special_tokens=False`.
"""

_LIMITS = """## Limits

A streaming cache forgets what has left it: the model goes on fluently, but does not remember. Its window is no longer
than that which it was trained for.

## Citation

```bibtex
@inproceedings{xiao2024streaming,
  title = {Efficient Streaming Language Models with Attention Sinks},
  author = {Xiao, Guangxuan and Tian, Yuandong and Chen, Beidi and Han, Song and Lewis, Mike},
  booktitle = {International Conference on Learning Representations},
  year = {2024},
  note = {arXiv:2309.17453}
}
```
"""

_ADAPTERS = """
Its adapters (LoRA) are not in these weights but beside them:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "{name}", subfolder="adapter")
```
"""

_TUNED = {
    "full": "",
    "lora": " Low-rank adapters (LoRA) of rank {rank} and the row of the sink were trained, and nothing else.",
    "sink_only": " Nothing but the sink was trained: every other weight is that of the model that it was made from.",
    "embed": " The sink and the norms were trained; every other weight is that of the model that it was made from.",
}


@dataclass(frozen=True)
class Findings:
    """What was measured and recorded.

    Attributes:
        verdict: the record of `sinktrain verify`.
        results: the record of the `sinktrain evaluate` that it judged; the picture is drawn of it.
        run: the record of the training run.
    """

    verdict: dict[str, Any] | None = None
    results: dict[str, Any] | None = None
    run: dict[str, Any] | None = None


def model_card(trained: Trained, name: str, cache: str, found: Findings, kept: bool = False) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        trained: the model (its weights are not looked at), its tokenizer and sink.
        name: by which it is loaded: of the exported folder, which `push` replaces by that of the repository.
        cache: the cache that `custom_generate` makes.
        found: what was measured.
        kept: its adapters lie in the folder `adapter`, and are not in its weights.
    """
    count = len(sink_ids_of(trained.tokenizer))
    parts = [
        f"---\n{_metadata(found.run)}\n---",
        f"# {name.rpartition('/')[2]}",
        _about(trained) + _TUNED[trained.tuning.mode].format(rank=trained.tuning.rank),
        _ADAPTERS.format(name=name).strip() if kept else "",
        _STREAM.format(name=name, cache=cache, kept=_kept(count)).strip(),
        "## Is the sink enough?",
        _verdict(found, kept),
        "## How it was trained",
        _training(found.run, trained.step),
        other_engines(trained.sink.kind, count, cache),
        _LIMITS.strip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_folders(record: dict[str, Any]) -> dict[str, Any]:
    """A record of `evaluate` or `verify` in which models and texts go by the last part of their names.

    Where they lay on the machine that measured them is nobody's business.
    """
    names = [value["name"] if isinstance(value, dict) else value for value in (record.get("model"), record.get("text"))]
    text = json.dumps(record)
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = text.replace(json.dumps(name)[1:-1], json.dumps(_shown(name))[1:-1])
    shown: dict[str, Any] = json.loads(text)
    return shown


def _metadata(run: dict[str, Any] | None) -> str:
    from huggingface_hub import ModelCardData

    base = run["config"]["model"]["name"] if run is not None else None
    if run is not None and base is not None and not _is_of_a_hub(base, Path(run["run"]["folder"])):
        base = None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["attention-sink", "streaming", "streaming-llm", "sinktrain"],
        base_model=base,
    )
    return str(data.to_yaml())


def _is_of_a_hub(name: str, folder: Path) -> bool:
    """Whether a name is USER/NAME, of a repository, and no path: here, or in the folder where the run began."""
    return name.count("/") == 1 and _shown(name) == name and not (folder / name).exists()


def _kept(count: int) -> str:
    return f"the {'sink' if count == 1 else f'{count} sinks'}" if count else "the first four positions"


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
        f"A {kind} with {size} parameters, trained with {tokens} in front of every sample as its attention sink: a "
        "place for the attention that a softmax has to spend somewhere, which would otherwise go to whatever token "
        "comes first. The tokenizer puts it in front of every text as BOS, and it is never generated. To stream "
        f"forever, keep the first {f'{count} positions' if count > 1 else 'position'} and the most recent ones in the "
        "key-value cache, and evict the rest."
    )


def _verdict(found: Findings, kept: bool) -> str:
    if found.verdict is None:
        return "Not judged."
    parts = [" ".join([*found.verdict["sentences"], *(["Judged with its adapters."] if kept else [])])]
    if found.results is not None:
        parts += [f"![Perplexity by cache]({PICTURE})", _perplexities(found.results)]
    rows = [pair for pair in [*found.verdict["comparisons"], found.verdict.get("needed")] if pair]
    table = ["| caches | tokens | difference in NLL (nats) | 95% interval |", "|---|---|---|---|"]
    table += [
        f"| {row['a']} minus {row['b']} | {row['tokens']:,} | {row['difference']:+.4f} "
        f"| {row['interval'][0]:+.4f} to {row['interval'][1]:+.4f} |"
        for row in rows
    ]
    return "\n\n".join([*parts, "\n".join(table)])


def _perplexities(results: dict[str, Any]) -> str:
    from math import exp

    table = ["| cache | tokens | perplexity once it is full | 95% interval |", "|---|---|---|---|"]
    for row in results["rows"]:
        low, high = (exp(value) for value in row["interval"])
        table.append(
            f"| {row['name']} | {row['tokens_full_cache']:,} | {row['ppl_full_cache']:.3f} | {low:.3f} to {high:.3f} |"
        )
    return "\n".join(table)


def _training(run: dict[str, Any] | None, step: int) -> str:
    """A table of the data and the settings, up to the step that is exported."""
    if run is None:
        return "The checkpoint has no record of it."
    config, began = run["config"], run["run"]
    model, data, trainer = config["model"], config["data"], config["trainer"]
    optimizer = model["optimizer"]
    # with a stream, the others are what it was validated on
    text = data["stream"]["name"] if data["stream"] else data["sources"] or data["path"]
    planned = f" of {trainer['max_steps']:,}," if trainer["max_steps"] > step else ""
    rows = {
        "from": f"`{_shown(model['name'])}`" if model["name"] else "random weights",
        "text": _text(text),
        "samples": f"{data['sequence_length']:,} positions, packed by `{data['packing']}`",
        "steps": f"{step:,}{planned} of {_batch(data, trainer, began)}",
        "optimizer": f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g}, {optimizer['schedule']}, "
                     f"weight decay {optimizer['weight_decay']:g}",
        "trained": f"`{model['tuning']['mode']}`, distillation {model['tuning']['distill']:g}",
        "attention": "full" if model["band"] is None else f"the band {model['band']}",
        "precision": str(began["precision"]),
        "with": ", ".join(f"{name} {each}" for name, each in began["versions"].items() if name != "python"),
    }  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _text(text: Any) -> str:
    """Names of texts, and their weights."""
    if isinstance(text, dict):
        return ", ".join(f"`{_shown(name)}` ({weight:g})" for name, weight in text.items())
    return f"`{_shown(str(text))}`"


def _shown(name: str) -> str:
    """A name of a hub or a package as it is, of a path its last part."""
    is_path = name.startswith(("/", ".", "~")) or Path(name).exists()
    return name.rstrip("/").rpartition("/")[2] if is_path else name


def _batch(data: dict[str, Any], trainer: dict[str, Any], began: dict[str, Any]) -> str:
    if data["global_batch_tokens"] is not None:
        return f"{data['global_batch_tokens']:,} positions"
    samples = data["batch_size"] * began["ranks"] * (trainer["accumulate_grad_batches"] or 1)
    return f"{samples:,} samples"
