"""Text that is tokenized while training: what it holds, and that a run goes on exactly where it stopped."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import some_text
from datasets import Dataset
from test_datamodule import Recorder, rows, stand_in, trainer
from transformers import AutoTokenizer

from sinktrain.base.errors import UserError
from sinktrain.data import HubStream, PreparedText, SinkDataModule
from sinktrain.data.prepare import prepare
from sinktrain.data.streamed_text import StreamedText, plain_backend
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.tokenizer import add_sink_tokens

FILES = 3


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of documents of very different lengths, some empty; of the parquet files, each has several row groups."""
    folder = tmp_path_factory.mktemp("dataset")
    for file in range(FILES):
        texts = [some_text(1 + (7 * n + file) % 40, 100 * file + n) if n % 9 else " " for n in range(25)]
        if request.param == "jsonl":
            (folder / f"{file}.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
        else:
            Dataset.from_dict({"text": texts, "n": [1] * 25}).to_parquet(folder / f"{file}.parquet", batch_size=4)
    return folder


@pytest.fixture(scope="module")
def folder(dataset: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared text with the tokenizer that the stream is to use, in its folder."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "a.txt").write_text("\f\n".join(some_text(50, seed) for seed in range(20)))
    out = prepare(str(root / "a.txt"), root / "out", tokenizer=str(tokenizer_folder), validation_fraction=0.4)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(out / "tokenizer")
    return out


@pytest.fixture(autouse=True)
def few_documents_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinktrain.data.streamed_text._GROUP", 300)


def run(
    dataset: Path, folder: Path, root: Path, steps: int, resume: Path | None = None, batch: int = 2, workers: int = 0,
    **options: Any,
) -> tuple[Recorder, Path]:  # fmt: skip
    module = Recorder(folder)
    data = SinkDataModule(
        None, 16, batch, stream=HubStream(str(dataset)), num_workers=workers, global_batch_tokens=64, **options
    )
    fitter = trainer(steps, root, limit_val_batches=0)
    fitter.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    assert data._streamed is not None and len(data._streamed._states) <= 8  # places that no checkpoint needs are let go
    assert fitter.global_step == steps
    fitter.save_checkpoint(root / f"{steps}.ckpt")
    return module, root / f"{steps}.ckpt"


def test_a_stream_holds_what_prepare_would_keep(dataset: Path, folder: Path) -> None:
    """In the order of the files: the same tokens, each document with its end of text."""
    tokenizer = Recorder(folder).tokenizer
    stream = HubStream(str(dataset), shuffle_shards=False)
    found: list[int] = []
    for tokens, place in StreamedText(stream, tokenizer, 0).read(None):
        if place["epoch"]:
            break
        found += tokens.tolist()
    source = sorted(dataset.iterdir())
    expected = []
    for file in source:
        texts = Dataset.from_json(str(file)) if file.suffix == ".jsonl" else Dataset.from_parquet(str(file))
        for text in texts["text"]:
            expected += [*tokenizer(text, add_special_tokens=False).input_ids, 0] if text.strip() else []
    assert len(found) > 500 and found == expected


def test_batches_are_the_text_cut_and_every_epoch_has_its_order_of_files(dataset: Path, folder: Path) -> None:
    orders = []
    for seed in (0, 1):
        text = StreamedText(HubStream(str(dataset)), Recorder(folder).tokenizer, seed)
        places, tokens, epochs = text.read(None), [], []
        while len(epochs) < 4:
            some, place = next(places)
            if not place["number"] and len(epochs) <= place["epoch"]:
                epochs.append(len(tokens))
            tokens += some.tolist()
        firsts = [tuple(tokens[start : start + 30]) for start in epochs[1:]]
        assert len(set(firsts)) > 1
        orders.append(tokens[: epochs[3]])
        data = stand_in(folder, 0, 1, step=0, accumulate=1, path=None, stream=HubStream(str(dataset)), seed=seed)
        got = list(islice(data.train_dataloader(), epochs[3] // 56))
        ids = torch.cat([batch["input_ids"] for batch in got])
        assert set(got[0]) == {"input_ids", "labels", "samples"}
        assert ids[:, 2:].flatten().tolist() == tokens[: ids.shape[0] * 14]
        assert torch.cat([batch["samples"] for batch in got]).tolist() == list(range(len(ids)))
        assert all((batch["labels"][:, :2] == -100).all() for batch in got)
    assert orders[0] != orders[1]
    length = len(orders[0]) // 3
    assert sorted(orders[0][:length]) == sorted(orders[0][length : 2 * length]) == sorted(orders[1][:length])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_goes_on_where_it_stopped(
    dataset: Path, folder: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, at odd steps, the second time with other batches; over the end of the first epoch."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # a forked worker would wait for threads that it does not have
    whole, _ = run(dataset, folder, tmp_path / "whole", 61)
    first, at = run(dataset, folder, tmp_path, 7, workers=workers)
    second, at = run(dataset, folder, tmp_path, 36, at, batch=1, workers=workers)
    third, _ = run(dataset, folder, tmp_path, 61, at, workers=workers)
    assert whole.samples == first.samples + second.samples + third.samples == list(range(4 * 61))
    assert rows(whole.seen) == rows(first.seen + second.seen + third.seen)
    assert len({tuple(row) for row in rows(whole.seen)}) > 100


@pytest.mark.parametrize("stop", range(1, 12))
def test_resumed_at_any_step_with_any_ranks(dataset: Path, folder: Path, stop: int) -> None:
    """The state belongs to the step that the optimizer reached, not to the batches fetched ahead."""
    options: dict[str, Any] = {"path": None, "stream": HubStream(str(dataset)), "accumulate": 1}

    def samples(data: SinkDataModule, batches: int) -> dict[int, list[int]]:
        got = list(islice(data.train_dataloader(), batches))
        return {
            s: row
            for batch in got
            for s, row in zip(batch["samples"].tolist(), batch["input_ids"].tolist(), strict=True)
        }

    whole = samples(stand_in(folder, 0, 1, step=0, batch_size=4, **options), 16)
    first = stand_in(folder, 0, 2, step=0, batch_size=2, **options)
    used = iter(first.train_dataloader())
    for _ in range(stop):
        next(used)
    first.trainer.global_step = stop  # type: ignore[union-attr, misc]
    for _ in range(3):
        next(used)  # fetched ahead, never used
    state = json.loads(json.dumps(first.state_dict()))
    assert state["samples"] == 4 * stop and state["stream"]["samples"] <= 4 * stop
    for ranks in (1, 2, 4):
        rest: dict[int, list[int]] = {}
        for rank in range(ranks):
            data = stand_in(folder, rank, ranks, step=stop, batch_size=4 // ranks, **options)
            data.load_state_dict(state)
            rest |= samples(data, 4)
        assert rest == {s: whole[s] for s in range(4 * stop, 4 * stop + 16)}


def test_validation_comes_from_a_prepared_folder_or_is_off(dataset: Path, folder: Path, tmp_path: Path) -> None:
    for path in (str(folder), None):
        module = Recorder(folder)
        data = SinkDataModule(path, 16, 2, stream=HubStream(str(dataset)))
        fitter = trainer(2, tmp_path, val_check_interval=2, check_val_every_n_epoch=None)
        fitter.fit(module, data)
        expected = len(PreparedText(folder).tokens("validation")) // 14 if path else 0
        assert len(module.validated) == expected and len(module.seen) == 4


def test_sinks_are_no_words_of_the_text(tokenizer_folder: Path) -> None:
    tokenizer, plain = (AutoTokenizer.from_pretrained(tokenizer_folder) for _ in range(2))
    (sink,) = add_sink_tokens(tokenizer, SinkConfig())
    text = "the cat <sink> sat<|endoftext|>"
    assert sink in tokenizer(text).input_ids
    found = plain_backend(tokenizer).encode(text, add_special_tokens=False).ids
    assert found == plain(text, add_special_tokens=False).input_ids and sink not in found and 0 in found


def test_bad_streams(dataset: Path, folder: Path, tmp_path: Path) -> None:
    tokenizer = Recorder(folder).tokenizer
    with pytest.raises(UserError, match=r"--data\.stream\.name .*nowhere: no dataset could be read"):
        StreamedText(HubStream(str(tmp_path / "nowhere")), tokenizer, 0)
    with pytest.raises(UserError, match=r"--data\.stream\.name .*: no dataset could be read .*--data\.stream\.split"):
        StreamedText(HubStream(str(dataset), split="test"), tokenizer, 0)
    for field in ("n", "body"):
        with pytest.raises(UserError, match=rf"--data\.stream\.field {field}: .* choose from text\."):
            StreamedText(HubStream(str(dataset), field=field), tokenizer, 0)
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n{"text": null}\n')
    with pytest.raises(UserError, match="holds no text"):
        next(StreamedText(HubStream(str(tmp_path)), tokenizer, 0).read(None))
