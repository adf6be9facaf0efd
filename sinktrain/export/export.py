"""The verb `export`: a checkpoint becomes a folder that `from_pretrained` loads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sinktrain.base.errors import UserError
from sinktrain.base.folders import new_folder
from sinktrain.base.secrets import redact
from sinktrain.base.terminal import say
from sinktrain.evaluation.results import read_results
from sinktrain.export.bundle import bundle
from sinktrain.export.card import PICTURE, Findings, model_card, without_folders
from sinktrain.export.hub import OPTION, HubOptions, check_repository
from sinktrain.export.picture import draw
from sinktrain.export.push import push_checked
from sinktrain.export.record import RECORD, sink_record
from sinktrain.export.shards import write_model
from sinktrain.export.stock import as_stock
from sinktrain.sinks.tokenizer import save_tokenizer
from sinktrain.training.adapters import save_adapters
from sinktrain.training.checkpoints import Trained, open_checkpoint, run_record
from sinktrain.training.weights import Weights


def export(
    checkpoint: Path,
    out: Path,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    shard_size: str = "5GB",
    verdict: Path | None = None,
    adapters: Literal["merge", "keep"] = "merge",
    push_to_hub: str | None = None,
    hub: HubOptions = HubOptions(),  # noqa: B008
    overwrite: bool = False,
) -> Path:
    """Writes a checkpoint as a plain Hugging Face model: safetensors, config, tokenizer, model card.

    The sink is an ordinary vocabulary entry and the tokenizer's BOS, put in front of every text by the tokenizer, and
    generation suppresses it. A Llama of sink kind `zero` or `logit` becomes a `granite_swa`, which has sink logits.
    `custom_generate/generate.py` lets `generate` stream without sinktrain; `sinktrain.json` says what the sink is.

    Args:
        checkpoint: A checkpoint that `sinktrain fit` wrote, under any strategy, or a folder of them, for the newest.
        out: The folder to write.
        dtype: Of the weights.
        shard_size: Of the largest file of weights; about twice that is in memory at a time.
        verdict: The JSON that `sinktrain verify` wrote, for the model card; the results beside it, for its picture.
        adapters: Of model.tuning.mode lora: `merge` adds them to the weights; `keep` writes them beside, for PEFT, into
            OUT/adapter, and the model with its sink and without them into OUT.
        push_to_hub: A repository, USER/NAME, to push the folder to once it has passed the checks of `check-export`.
        hub: How to push.
        overwrite: Replace an existing folder.

    Returns:
        The folder.
    """
    import torch

    merge = adapters == "merge"
    if push_to_hub is not None:
        check_repository(push_to_hub)
    with _written(), new_folder(out, "--out", overwrite=overwrite, reads=[checkpoint, verdict]) as folder:
        judged, results = (None, None) if verdict is None else _read_verdict(verdict)
        trained, weights = open_checkpoint(checkpoint, getattr(torch, dtype), "--checkpoint", merge)
        if not merge:
            _keep_adapters(trained, weights, folder / "adapter", out.name)
        model, weights = as_stock(trained, weights)
        trained = dataclasses.replace(trained, model=model)
        write_model(model, weights, folder, shard_size)
        save_tokenizer(trained.tokenizer, folder)
        _check(folder, trained.tokenizer("text").input_ids)
        run = run_record(checkpoint, "--checkpoint")
        seed = None if run is None else run["config"].get("seed_everything")
        record = sink_record(trained, judged, kept=not merge, seed=seed)
        (folder / RECORD).write_text(json.dumps(redact(record), indent=2) + "\n")
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(bundle(record["cache"]))
        found = Findings(judged, results, run)
        if found.results is not None:
            draw(found.results, folder / PICTURE)
        card = model_card(trained, out.name, record["cache"], found, kept=not merge)
        (folder / "README.md").write_text(redact(card))
    say(f"exported step {trained.step} of {checkpoint} as {dtype}")
    say(f"model: {out}")
    if push_to_hub is not None:
        push_checked(out, push_to_hub, checkpoint, hub, OPTION)
    return out


def _keep_adapters(trained: Trained, weights: Weights, folder: Path, base: str) -> None:
    """Writes the adapters for themselves."""
    if trained.tuning.mode != "lora":
        raise UserError(
            f"--adapters keep: the checkpoint was tuned in mode {trained.tuning.mode}, without adapters; leave it out."
        )
    save_adapters(weights.adapters(), trained.tuning.to_dict(), folder, base)


@contextmanager
def _written() -> Iterator[None]:
    """Says what cannot be written: libraries in Rust have exceptions of their own for a disk that is full.

    Raises:
        UserError: it cannot.
    """
    try:
        yield
    except Exception as error:
        by_system = isinstance(error, OSError) and error.errno is not None  # others are raised by transformers
        if not by_system and type(error).__name__ != "SafetensorError" and "(os error " not in str(error):
            raise
        raise UserError(f"--out: cannot be written ({str(error).splitlines()[0]}); choose another place.") from error


def _read_verdict(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A verdict, and the results that it is about, if it lies beside them, as it does by default.

    Raises:
        UserError: it is none, or the results beside it are of another model or text.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        record["sentences"], record["comparisons"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--verdict {path}: is not a verdict; name the JSON that `sinktrain verify` wrote.") from error
    try:
        results = read_results(path.parent).record
    except UserError:
        return without_folders(record), None
    for what in ("model", "text"):
        if record.get(what) != results[what]["name"]:
            raise UserError(
                f"--verdict {path}: is of the {what} {record.get(what)}, and the results beside it of "
                f"{results[what]['name']}; run `sinktrain verify` on them again."
            )
    return without_folders(record), without_folders(results)


def _check(folder: Path, expected: list[int]) -> None:
    """The tokenizer as another program will load it puts the sinks in front exactly as the trained one does."""
    from transformers import AutoTokenizer

    if (found := AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("text").input_ids) != expected:
        raise UserError(
            f"--checkpoint: its tokenizer does not survive saving ({expected} became {found}); "
            "train with a tokenizer that has a tokenizer.json."
        )
