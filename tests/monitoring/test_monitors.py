"""What the monitors log is what transformers' own attention, and decoding token by token, say of the same model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from watched_runs import KINDS, new_module, train

from sinktrain.base.errors import UserError
from sinktrain.data import HubStream, SinkDataModule
from sinktrain.monitoring import SinkMonitor, StreamingProbe
from sinktrain.sinks import SinkConfig
from sinktrain.streaming import reference_nll
from sinktrain.training import SinkModule
from sinktrain.training.held_out import sequences


class Book(Logger):
    """Keeps what is logged, by step."""

    name, version, save_dir = "book", 0, None

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.save_dir = folder
        self.kept: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not kept."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keeps the monitors' figures."""
        watched = {key: value for key, value in metrics.items() if key.split("/")[0] in ("sinks", "probe")}
        if watched and step is not None:
            self.kept.setdefault(step, {}).update(watched)


def apart(module: SinkModule) -> SinkModule:
    """Makes attention far from uniform, so that a wrong position shows."""
    module.configure_model()
    with torch.no_grad():
        for name, weight in module.model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "embed_tokens", "sink")):
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.7)
    return module


def eager_alpha(module: SinkModule, rows: Tensor) -> Tensor:
    """(B, layers, H, T) of transformers' eager attention: the mean over queries i >= k of the attention on k."""
    module.model.eval()
    module.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(module.model(input_ids=rows, use_cache=False, output_attentions=True).attentions, dim=1)
    length = rows.shape[1]
    return weights.sum(dim=3) / torch.arange(length, 0, -1)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_attention_before_the_first_step(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, count: int
) -> None:
    sink = SinkConfig(count=count) if count else SinkConfig(kind="none")
    module, monitor, book = (
        apart(new_module(tokenizer_folder, sink=sink)),
        SinkMonitor(50, 30, 20, first=3),
        Book(tmp_path),
    )
    fresh = apart(new_module(tokenizer_folder, sink=sink))
    train(module, prepared_folder, tmp_path, [monitor], steps=1, logger=book)
    alpha = eager_alpha(fresh, monitor.rows)
    names = {0: [], 1: ["sink"], 2: ["sink_0", "sink_1"]}[count] + ["text_1", "text_2", "text_3"]
    expected = {f"sinks/{name}": float(alpha[..., k].mean()) for k, name in enumerate(names)}
    shares = {f"sinks/{name}_heads": float((alpha[..., k] > 0.3).float().mean()) for k, name in enumerate(names)}
    assert book.kept[0] == pytest.approx({**expected, **shares}, abs=2e-3)  # a head may lie on the threshold
    assert book.kept[0] == pytest.approx({**book.kept[0], **expected}, abs=1e-5)
    assert max(shares.values()) > 0.05 and list(book.kept) == [0]
    [line] = (tmp_path / "sinks.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert written["step"] == 0 and list(written["attention"]) == names
    for k, name in enumerate(names):
        assert torch.allclose(torch.tensor(written["attention"][name]), alpha[..., k].mean(dim=0), atol=1e-4)


@pytest.mark.parametrize("kind", ["zero", "logit", "kv"])
def test_what_goes_to_the_outlet_is_missing_elsewhere(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: str
) -> None:
    book, monitor = Book(), SinkMonitor(1, 4, 12, first=12)
    train(apart(new_module(tokenizer_folder, kind)), prepared_folder, tmp_path, [monitor], steps=1, logger=book)
    for figures in book.kept.values():
        # alpha_k times the number of queries that see k, over all queries, is k's part of all attention.
        text = sum(figures[f"sinks/text_{k + 1}"] * (12 - k) / 12 for k in range(12))
        assert 0.02 < figures["sinks/outlet"] < 0.98 and text + figures["sinks/outlet"] == pytest.approx(1, abs=1e-5)
        assert 0 <= figures["sinks/outlet_heads"] <= 1
    assert list(book.kept) == [0, 1]


def test_every_kind_looks_at_the_same_text(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    rows, streams = [], []
    for sink in (*(SinkConfig(kind=kind) for kind in KINDS), SinkConfig(count=2)):  # type: ignore[arg-type]
        monitor, probe = SinkMonitor(50, 7, 20), StreamingProbe(50, size=12, tokens=40)
        module = new_module(tokenizer_folder, sink=sink)
        train(module, prepared_folder, tmp_path, [monitor, probe], steps=1)
        count = len(module.sink_ids)
        assert monitor.rows.shape == (7, count + 20) and probe.stream.shape == (count + 40,)
        assert monitor.rows[:, :count].tolist() == [module.sink_ids] * 7
        assert probe.stream[:count].tolist() == module.sink_ids
        rows.append(monitor.rows[:, count:])
        streams.append(probe.stream[count:])
    assert len({tuple(row.tolist()) for row in rows[0]}) == 7
    assert all(torch.equal(each, rows[0]) for each in rows) and all(torch.equal(each, streams[0]) for each in streams)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_perplexity_of_streams(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, count: int) -> None:
    """Against decoding token by token, over the tokens after the cache has filled."""
    sink = SinkConfig(count=count) if count else SinkConfig(kind="none")
    module, fresh = (apart(new_module(tokenizer_folder, sink=sink)) for _ in range(2))
    probe, book = StreamingProbe(50, size=10, tokens=30, chunk=7), Book()
    train(module, prepared_folder, tmp_path, [probe], steps=1, logger=book)
    fresh.model.eval()
    expected = {}
    for cache in probe.caches:
        nll = reference_nll(fresh.model, probe.stream, cache)
        expected[f"probe/ppl_{cache}"] = math.exp(float(nll[-19:].mean()))  # tokens 12 to 30 of the text
    assert book.kept == {0: pytest.approx(expected, rel=1e-4)}
    keys = {"probe/ppl_0+10", "probe/ppl_1+9", "probe/ppl_4+6"} | ({"probe/ppl_2+8"} if count == 2 else set())
    assert expected.keys() == keys and len({round(value, 2) for value in expected.values()}) == len(keys)


@pytest.mark.parametrize("kind", ["zero", "logit", "kv"])
def test_outlets_stream_too(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: str) -> None:
    book, probe = Book(), StreamingProbe(1, size=10, tokens=30)
    train(apart(new_module(tokenizer_folder, kind)), prepared_folder, tmp_path, [probe], steps=1, logger=book)
    assert len(book.kept) == 2
    for figures in book.kept.values():
        ppl = [value for key, value in figures.items() if "ppl" in key]
        assert len(ppl) == 3 and all(1 < value < 1e6 for value in ppl)


class Clock:
    """Says a second more each time it is asked."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_cost_and_steps_of_looks(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    """Two micro-batches a step; a run that goes on does not look at what it has looked at."""
    monitor, book = SinkMonitor(2, 4, 12), Book()
    monitor.clock = Clock()
    trainer = train(new_module(tokenizer_folder), prepared_folder, tmp_path, [monitor], steps=5, logger=book,
                    accumulate_grad_batches=2)  # fmt: skip
    assert list(book.kept) == [0, 2, 4]
    assert [figures.get("sinks/cost_share") for figures in book.kept.values()] == [None, 0.5, 0.5]
    assert float(trainer.callback_metrics["sinks/sink"]) == pytest.approx(book.kept[4]["sinks/sink"])
    trainer.save_checkpoint(tmp_path / "at-5.ckpt")
    trainer = train(new_module(tokenizer_folder), prepared_folder, tmp_path, [SinkMonitor(5, 4, 12)], steps=10,
                    logger=book, ckpt_path=tmp_path / "at-5.ckpt")  # fmt: skip
    assert list(book.kept) == [0, 2, 4, 10]


@pytest.mark.parametrize(
    ("monitor", "words"),
    [
        (SinkMonitor(length=64), r"SinkMonitor\.length 64.*65 positions.*trained for 64.*1 less"),
        (SinkMonitor(length=20, text="./nowhere"), r"SinkMonitor\.text"),
        (StreamingProbe(size=64), r"StreamingProbe\.size 64.*1 less"),
        (StreamingProbe(size=16, tokens=100_000), r"StreamingProbe\.tokens.*100000"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_training(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, monitor: L.Callback, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        train(new_module(tokenizer_folder), prepared_folder, tmp_path, [monitor], steps=1)


def test_a_cache_smaller_than_the_sinks_is_refused(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    module = new_module(tokenizer_folder, sink=SinkConfig(count=6))
    with pytest.raises(UserError, match=r"StreamingProbe\.size"):
        train(module, prepared_folder, tmp_path, [StreamingProbe(size=6, tokens=30)], steps=1)


def test_a_run_without_text_of_its_own_needs_one(tokenizer_folder: Path, tmp_path: Path) -> None:
    trainer = L.Trainer(max_steps=1, logger=False, callbacks=[SinkMonitor(length=20)], default_root_dir=tmp_path,
                        accelerator="cpu", use_distributed_sampler=False)  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "the cat sat"}) + "\n")
    data = SinkDataModule(stream=HubStream(str(tmp_path)), sequence_length=32, batch_size=2)
    with pytest.raises(UserError, match=r"SinkMonitor\.text"):
        trainer.fit(new_module(tokenizer_folder), data)


@pytest.mark.parametrize("fields", [{"every_n_steps": 0}, {"sequences": 0}, {"length": 2, "first": 3}, {"first": 0}])
def test_bad_numbers_name_the_option(fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"SinkMonitor\.\w+"):
        SinkMonitor(**fields)
    probe = {"every_n_steps": 0} if "every_n_steps" in fields else {"size": 4}
    with pytest.raises(UserError, match=r"StreamingProbe\.\w+"):
        StreamingProbe(**probe)


def test_sequences_take_turns_between_texts() -> None:
    texts = [torch.arange(100).numpy(), torch.arange(1000, 1005).numpy(), torch.arange(2000, 2050).numpy()]
    rows = sequences(texts, 5, 10, "x")
    assert rows.shape == (5, 10) and torch.equal(rows - rows[:, :1], torch.arange(10).expand(5, 10))
    assert rows[:, 0].tolist() == [0, 45, 90, 2000, 2040]  # the second text is too short
