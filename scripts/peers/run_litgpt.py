"""Trains with litgpt's own GPT and pretraining loop; started by scripts/bench_training.py in litgpt's environment.

    PYTHONPATH=scripts .venv-litgpt/bin/python -m peers.run_litgpt JOB.json

What is made as `litgpt.pretrain.main` makes it, but for these: the weights are those of all contestants; it is compiled
only when the job says so; AdamW is fused on a CPU too; nothing is saved. `litgpt.pretrain.fit` runs as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import litgpt.pretrain as pretrain
import numpy as np
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.scripts.convert_hf_checkpoint import copy_weights_gpt_neox, copy_weights_hf_llama
from litgpt.utils import num_parameters
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from peers.step_clock import StepClock, read_job, write_result


class Rows(Dataset[Tensor]):
    """Samples (n, T) of a file as litgpt wants them, (T + 1); the last position has no target, as elsewhere."""

    def __init__(self, path: str) -> None:
        self._rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return nn.functional.pad(torch.from_numpy(np.array(self._rows[index])), (0, 1), value=-100)


def litgpt_config(given: dict[str, Any], length: int) -> Config:
    """The same model in litgpt's words: a Llama or a GPT-NeoX of transformers."""
    neox = given["model_type"] == "gpt_neox"
    rope = given["rope_parameters"]
    return Config(
        name=given["model_type"],
        block_size=length,
        n_layer=given["num_hidden_layers"],
        n_embd=given["hidden_size"],
        n_head=given["num_attention_heads"],
        n_query_groups=given.get("num_key_value_heads"),
        vocab_size=given["vocab_size"],
        padded_vocab_size=given["vocab_size"],
        intermediate_size=given["intermediate_size"],
        rotary_percentage=rope.get("partial_rotary_factor", 1.0),
        rope_base=round(rope["rope_theta"]),
        norm_eps=given["layer_norm_eps" if neox else "rms_norm_eps"],
        norm_class_name="LayerNorm" if neox else "RMSNorm",
        mlp_class_name="GptNeoxMLP" if neox else "LLaMAMLP",
        parallel_residual=neox and given["use_parallel_residual"],
        bias=neox,
        attn_bias=neox and given["attention_bias"],
    )


def make_model(folder: Path, length: int) -> GPT:
    """The contestants' model, with its weights."""
    given = json.loads((folder / "config.json").read_text())
    config = litgpt_config(given, length)
    weights, state = load_file(folder / "model.safetensors"), {}
    if given["model_type"] == "gpt_neox":
        copy_weights_gpt_neox(config, state, weights)
        state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    else:
        copy_weights_hf_llama(config, {}, state, weights)
    model = GPT(config)
    model.load_state_dict(state)
    if given["tie_word_embeddings"]:
        model.transformer.wte.weight = model.lm_head.weight
    return model


def keep_first_loss() -> list[float]:
    """Where the first training loss will stand."""
    found: list[float] = []
    plain = pretrain.chunked_cross_entropy

    def watched(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        loss = plain(logits, targets, **options)
        if torch.is_grad_enabled() and not found and logits.device.type != "meta":
            found.append(float(loss.detach()))
        return loss

    pretrain.chunked_cross_entropy = watched
    return found


def run(job: dict[str, Any]) -> None:
    """Trains, and writes the result."""
    positions, samples = job["batch_size"] * job["length"], job["batch_size"] * job["accumulation"]
    train = TrainArgs(
        save_interval=None,
        log_interval=job["log_every"],
        global_batch_size=samples,
        micro_batch_size=job["batch_size"],
        lr_warmup_steps=job["learning_rate_warmup"],
        max_tokens=job["steps"] * samples * job["length"],
        max_norm=1.0,
        min_lr=0.1 * job["learning_rate"],
    )
    precision = "bf16-mixed" if job["precision"] == "bf16" else "32-true"
    accelerator = "gpu" if job["device"].startswith("cuda") else "cpu"
    fabric = L.Fabric(accelerator=accelerator, devices=1, strategy="auto", precision=precision)
    fabric.launch()
    model = make_model(Path(job["model"]), job["length"])
    parameters = num_parameters(model)
    model = fabric.setup(torch.compile(model) if job["compile"] else model)
    plain = torch.optim.AdamW(
        model.parameters(), lr=job["learning_rate"], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
    )
    clock, losses = StepClock(plain, job["device"]), keep_first_loss()
    rows = Rows(job["rows"])
    assert len(rows) * job["length"] >= job["steps"] * positions * job["accumulation"]
    loaders = [DataLoader(rows, batch_size=job["batch_size"], pin_memory=accelerator == "gpu") for _ in range(2)]
    train_loader, validation_loader = fabric.setup_dataloaders(*loaders)
    state = {"model": model, "optimizer": fabric.setup_optimizers(plain), "iter_num": 0, "step_count": 0}
    pretrain.fit(
        fabric=fabric,
        devices=1,
        state=state,
        train_dataloader=train_loader,
        val_dataloader=validation_loader,
        out_dir=Path(job["result"]).parent / "litgpt",
        tokenizer_dir=None,
        train=train,
        eval=EvalArgs(interval=10**9, final_validation=False),
    )
    write_result(job, clock, losses[0], parameters)


if __name__ == "__main__":
    run(read_job())
