"""Training equals a loop over transformers and torch alone: the same losses, step by step.

The loop uses nothing of sinktrain: the model and its loss are transformers', AdamW, clipping and LambdaLR are torch's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import Recorder, trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule

STEPS, LENGTH, SIZE, CLIP, RATE, WARMUP, FINAL, DECAY = 10, 32, 4, 0.5, 3e-3, 3, 0.1, 0.1
CLOSE = 1e-6  # nats: losses are near 6, where neighbouring float32 numbers are 5e-7 apart: at most two of them
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama-tied": {**LLAMA, "tie_word_embeddings": True},
    "llama-untied": {**LLAMA, "tie_word_embeddings": False},
    "gpt_neox": {"model_type": "gpt_neox", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "rotary_pct": 0.25, "max_position_embeddings": 64},
}  # fmt: skip


@pytest.fixture(params=sorted(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A new model of transformers with the tests' tokenizer, and rows to spare for a sink."""
    fields = dict(MODELS[request.param])
    torch.manual_seed(0)
    config = AutoConfig.for_model(fields.pop("model_type"), vocab_size=320, **fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rate_factor(step: int) -> float:
    """A line up over the warm-up, half a cosine down to the final fraction at the last step."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    angle = math.pi * (step - WARMUP) / (STEPS - 1 - WARMUP)
    return FINAL + (1 - FINAL) * (1 + math.cos(angle)) / 2


@dataclass
class Loop:
    """A training loop that a reader of transformers' and torch's documentation would write.

    Args:
        sink: the token that goes in front of every sample and is no label; not decayed.
        accumulation: batches of a step.
        clip, decay, labelled: off, or on, in the tests of these tests.
    """

    sink: int | None = None
    accumulation: int = 1
    clip: float = CLIP
    decay: float = DECAY
    labelled: bool = False

    def losses(self, model: Any, texts: list[Tensor]) -> list[float]:
        """The mean loss of every step over texts (B, T) or, with a sink, (B, T - 1)."""
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": self.decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor)
        found = []
        for start in range(0, len(texts), self.accumulation):
            total = 0.0
            for text in texts[start : start + self.accumulation]:
                loss = self.loss(model, text) / self.accumulation
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            self.step(model, optimizer)
            schedule.step()
            optimizer.zero_grad()
            found.append(total)
        return found

    def loss(self, model: Any, text: Tensor) -> Tensor:
        if self.sink is None:
            return model(input_ids=text, labels=text).loss
        ids = torch.cat([torch.full((len(text), 1), self.sink), text], dim=1)
        labels = ids.clone()
        labels[:, 0] = -100
        if self.labelled:  # then the last token is none, so that the number of targets is the same
            labels[:, 1:-1] = ids[:, :-2]
        return model(input_ids=ids, labels=labels).loss

    def step(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        if self.sink is None:
            optimizer.step()
            return
        row = model.get_input_embeddings().weight.data[self.sink]
        lost = optimizer.param_groups[0]["lr"] * self.decay * row.clone()
        optimizer.step()
        row += lost


def train(
    folder: Path, data: Any, out: Path, kind: str = "none", accumulation: int = 1
) -> tuple[list[float], list[Tensor], dict[str, Tensor]]:
    """Losses by step, the batches that were seen, and the weights before the first step."""
    optimizer = OptimizerConfig(learning_rate=RATE, warmup_steps=WARMUP, final_fraction=FINAL, weight_decay=DECAY)
    module, recorder = SinkModule(name=str(folder), sink=SinkConfig(kind=kind), optimizer=optimizer), Recorder()
    module.configure_model()
    first = {name: weight.clone() for name, weight in module.model.state_dict().items()}
    fit = trainer(out, STEPS, gradient_clip_val=CLIP, accumulate_grad_batches=accumulation, callbacks=[recorder])
    fit.fit(module, data)
    assert len(recorder.batches) == STEPS * accumulation
    return recorder.losses[accumulation - 1 :: accumulation], recorder.batches, first


def bare(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def close(found: list[float], expected: list[float], within: float = 2 * CLOSE) -> bool:
    assert len(found) == len(expected) == STEPS and expected[-1] < expected[0] - 0.3  # it learned something
    return found == pytest.approx(expected, rel=0, abs=within)


def test_a_fixed_batch(folder: Path, tmp_path: Path) -> None:
    text = torch.randint(1, 300, (SIZE, LENGTH), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": text, "labels": text, "samples": torch.arange(SIZE)}
    found, *_ = train(folder, DataLoader([batch] * STEPS, batch_size=None), tmp_path)  # type: ignore[arg-type]
    assert close(found, Loop().losses(bare(folder), [text] * STEPS), CLOSE)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_batches_of_a_text(folder: Path, prepared_folder: Path, tmp_path: Path, accumulation: int) -> None:
    data = SinkDataModule(str(prepared_folder), sequence_length=LENGTH, batch_size=SIZE)
    found, seen, _ = train(folder, data, tmp_path, accumulation=accumulation)
    assert len({tuple(batch.flatten().tolist()) for batch in seen}) == STEPS * accumulation
    assert close(found, Loop(accumulation=accumulation).losses(bare(folder), seen))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_sink_in_front(folder: Path, prepared_folder: Path, tmp_path: Path, accumulation: int) -> None:
    """The loop's text is what a run without a sink saw: both see the same tokens in the same order."""
    both = {"sequence_length": LENGTH, "batch_size": SIZE, "reserve_sinks": 1}
    found, seen, first = train(folder, SinkDataModule(str(prepared_folder), **both), tmp_path, "token", accumulation)
    _, texts, _ = train(folder, SinkDataModule(str(prepared_folder), **both), tmp_path, "none", accumulation)
    assert texts[0].shape == (SIZE, LENGTH - 1)
    model = bare(folder)
    model.load_state_dict(first)
    assert close(found, Loop(int(seen[0][0, 0]), accumulation).losses(model, texts))


@pytest.mark.parametrize("wrong", [{"clip": 1e9}, {"decay": 0.0}, {"labelled": True}, {"sink": 0}, {"accumulation": 2}])
def test_a_slip_in_the_loop_shows(folder: Path, prepared_folder: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    data = SinkDataModule(str(prepared_folder), sequence_length=LENGTH, batch_size=SIZE)
    found, seen, first = train(folder, data, tmp_path, "token")
    model = bare(folder)
    model.load_state_dict(first)
    loop = Loop(**{"sink": int(seen[0][0, 0]), **wrong})
    off = loop.losses(model, [batch[:, 1:] for batch in seen])[: STEPS // 2]
    assert max(abs(a - b) for a, b in zip(found, off, strict=False)) > 20 * CLOSE
