"""`sinktrain export` of a checkpoint that several ranks wrote: two files' worth of memory, no ranks, no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from sinktrain.checkpoints.pieces import Piece, Place
from sinktrain.checkpoints.store import Draft
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.embedding import grow_embedding
from sinktrain.sinks.tokenizer import add_sink_tokens
from sinktrain.training import TuningConfig
from sinktrain.training.checkpoints import checkpoint_record

MEASURE = """
import re, sys
from sinktrain.cli import main
from sinktrain.export import export as module
from sinktrain.training import checkpoints
import torch, transformers
from transformers import LlamaForCausalLM
shards = ["--shard_size", "40MB"]
assert main(["export", "--checkpoint", sys.argv[2], "--out", sys.argv[3] + "/small", *shards]) == 0  # what is imported
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = peak()
assert main(["export", "--checkpoint", sys.argv[1], "--out", sys.argv[3] + "/large", *shards]) == 0
print("grown", peak() - before)
assert not torch.distributed.is_initialized()
"""


def write_checkpoint(
    folder: Path, tokenizer_folder: Path, width: int, layers: int
) -> tuple[Path, dict[str, torch.Tensor]]:
    """As two ranks of FSDP2 write it: the first and the second half of the rows."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sink = SinkConfig()
    ids = add_sink_tokens(tokenizer, sink)
    config = LlamaConfig(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, vocab_size=300,
                         num_attention_heads=4, tie_word_embeddings=True)  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    grow_embedding(model, len(tokenizer), ids, sink, None, True)
    draft = Draft(folder, 7, "a")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for rank in range(2):
        pieces = []
        for name, tensor in weights.items():
            half = len(tensor) // 2
            start, end = (0, half) if rank == 0 else (half, len(tensor))
            part = tensor[start:end].clone()
            rest = tuple(tensor.shape[1:])
            place = Place(tuple(tensor.shape), (start, *(0 for _ in rest)), (end - start, *rest))
            pieces += [Piece(f"weights/{name}", place, part), Piece(f"optimizer/{name}/exp_avg", place, part)]
        draft.write_rank(rank, pieces, {})
    documents = {"model.json": checkpoint_record(model, tokenizer, sink, TuningConfig()), "state.json": {}}
    return draft.publish(2, documents, {}, 1.0, lambda: None), weights


@pytest.mark.slow
def test_near_one_file(tokenizer_folder: Path, tmp_path: Path) -> None:
    small, _ = write_checkpoint(tmp_path / "small-run", tokenizer_folder, 32, 1)
    large, weights = write_checkpoint(tmp_path / "large-run", tokenizer_folder, 1024, 6)
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    assert size > 300e6
    command = [sys.executable, "-c", MEASURE, str(large), str(small), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split()[-1])
    print(json.dumps({"weights": size, "grown": grown}))
    assert grown < 150e6  # the files of 40 MB, twice while one is written, and what the allocator keeps
    assert len(list((tmp_path / "large").glob("model-*.safetensors"))) >= 8
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "large")
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter, weights[name]), name
