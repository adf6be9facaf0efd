"""The exported folder works where sinktrain is not importable, and equals the trained module."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from sinktrain.base.models import load_model
from sinktrain.cli import main
from sinktrain.data import SinkDataModule
from sinktrain.evaluation.attention import attention_to_first
from sinktrain.evaluation.subject import ModelOptions, Subject
from sinktrain.evaluation.texts import Text
from sinktrain.sinks import SinkConfig
from sinktrain.streaming import CacheSpec, SinkCache
from sinktrain.training import OptimizerConfig, SinkModule
from sinktrain.training.checkpoints import load_checkpoint

PLAIN_PROGRAM = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sinktrain":
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
import torch
torch.set_num_threads(1)  # as the tests have it: the order of sums is the same
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = tokenizer("the cat sat on a mat", return_tensors="pt").input_ids
logits = model(ids).logits
out = model.generate(ids, max_new_tokens=12, do_sample=True)
options = {"custom_generate": sys.argv[1], "trust_remote_code": True, "max_new_tokens": 60, "do_sample": False}
streamed = model.generate(ids, cache="1+11", **options)
default = model.generate(ids, **options)
torch.save(
    {"ids": ids, "logits": logits.detach(), "out": out, "bos": tokenizer.bos_token, "streamed": streamed,
     "default": default},
    sys.argv[2],
)
"""


def checkpoint_of(module: SinkModule, data: Path, folder: Path) -> Path:
    """Trains for three steps."""
    fit = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    fit.fit(module, SinkDataModule(str(data), sequence_length=32, batch_size=2))
    fit.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def trained_checkpoint(model_folder: Path, data: Path, folder: Path, sink: SinkConfig) -> tuple[SinkModule, Path]:
    module = SinkModule(name=str(model_folder), sink=sink, optimizer=OptimizerConfig(warmup_steps=1))
    checkpoint = checkpoint_of(module, data, folder)
    return module.eval(), checkpoint


@pytest.mark.parametrize("count", [1, 2])
def test_loads_without_our_code_and_gives_the_same_logits(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, count: int
) -> None:
    module, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, SinkConfig(count=count))
    out = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    subprocess.run([sys.executable, "-c", PLAIN_PROGRAM, str(out), str(tmp_path / "found.pt")], check=True)
    found = torch.load(tmp_path / "found.pt")
    ids = found["ids"]
    assert ids[0, :count].tolist() == module.sink_ids and not torch.isin(ids[0, count:], ids[0, :count]).any()
    with torch.no_grad():
        assert torch.equal(found["logits"], module(ids))
    assert not torch.isin(found["out"][0, ids.shape[1] :], ids[0, :count]).any()
    options = {"max_new_tokens": 60, "do_sample": False}
    module.model.generation_config = GenerationConfig.from_pretrained(out)
    for name, cache in (("streamed", "1+11"), ("default", str(CacheSpec.default(count, 512)))):
        expected = module.model.generate(ids, past_key_values=SinkCache.for_model(module.model, cache), **options)
        assert torch.equal(found[name], expected)
    assert not torch.equal(found["streamed"], found["default"])  # 1+11 has evicted something
    tokenizer_config = json.loads((out / "tokenizer_config.json").read_text())
    assert tokenizer_config.get("add_bos_token", False) == (count == 1)  # it would put only the first of two in front
    assert found["bos"] == module.sink.tokens[0]
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json", "README.md"}


LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def outlet_checkpoint(tokenizer: Path, data: Path, folder: Path, sink: SinkConfig, **config: Any) -> Path:
    """A model whose sink logits are large and have been trained for three steps."""
    module = SinkModule(
        config={**LLAMA, **config}, tokenizer=str(tokenizer), sink=sink, optimizer=OptimizerConfig(warmup_steps=1)
    )
    module.configure_model()
    with torch.no_grad():
        for name, weight in module.model.named_parameters():
            if name.endswith("sinks"):
                weight.copy_(torch.linspace(-4, 4, 4))
            elif "q_proj" in name or "k_proj" in name:
                weight.mul_(20)
    return checkpoint_of(module, data, folder)


@pytest.mark.parametrize(("kind", "tied"), [("zero", True), pytest.param("logit", False, marks=pytest.mark.slow)])
def test_a_llama_with_an_outlet_is_a_stock_architecture(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: Any, tied: bool
) -> None:
    checkpoint = outlet_checkpoint(
        tokenizer_folder, prepared_folder, tmp_path, SinkConfig(kind=kind), tie_word_embeddings=tied
    )
    out = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "granite_swa"
    subprocess.run([sys.executable, "-c", PLAIN_PROGRAM, str(out), str(tmp_path / "found.pt")], check=True)
    found = torch.load(tmp_path / "found.pt")
    trained = load_checkpoint(checkpoint)
    model, options = trained.model, ModelOptions("x")
    text = Text("words", found["ids"][0].repeat(40))
    with torch.no_grad():
        expected = model(input_ids=found["ids"]).logits
        assert float((found["logits"] - expected).abs().max()) < 1e-5 * float(expected.abs().max().clamp(min=1))
        shares = [
            attention_to_first(Subject(each, trained.tokenizer, [], options, None), text, length=16, sequences=2)
            for each in (model, load_model(str(out)))
        ]
        assert shares[0] is not None and "outlet" in shares[0] and np.allclose(
            *([each["outlet"], each["share"]] for each in shares), atol=1e-4  # type: ignore[index]
        )  # fmt: skip
        streamed = model.generate(
            found["ids"], past_key_values=SinkCache.for_model(model, "1+11"), max_new_tokens=60, do_sample=False
        )
        assert torch.equal(streamed, found["streamed"])
        model.set_attn_implementation("sdpa")  # the Llama alone
        assert float((found["logits"] - model(input_ids=found["ids"]).logits).abs().max()) > 1e-2
    assert "beside those of the text" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("sink", "config"),
    [
        (SinkConfig(kind="kv"), {}),
        (SinkConfig(kind="logit"), {"model_type": "qwen3"}),
        (SinkConfig(kind="zero"), {"rms_norm_eps": 1e-6, "model_type": "mistral", "sliding_window": 8}),
    ],
)
def test_an_outlet_without_a_stock_architecture(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sink: SinkConfig,
    config: dict[str, Any],
) -> None:  # fmt: skip
    checkpoint = outlet_checkpoint(tokenizer_folder, prepared_folder, tmp_path, sink, **config)
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert f"sink.kind {sink.kind}" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_card_holds_the_verdict(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, SinkConfig())
    pair = {"a": "1+15", "b": "4+12", "tokens": 1234, "difference": 0.00123, "interval": [-0.001, 0.0035]}
    record = {"sentences": ["Proven: yes.", "Second.", "Third."], "comparisons": [pair], "needed": None}
    (tmp_path / "v.json").write_text(json.dumps(record))
    arguments = ["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]
    assert main([*arguments, "--verdict", str(tmp_path / "v.json")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "Proven: yes." in card
    assert "| 1+15 minus 4+12 | 1,234 | +0.0012 | -0.0010 to +0.0035 |" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("mistake", ["checkpoint", "verdict", "out"])
def test_mistakes_leave_nothing_behind(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, SinkConfig())
    out, verdict = tmp_path / "out", tmp_path / "v.json"
    if mistake == "checkpoint":
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    elif mistake == "verdict":
        verdict.write_text("{}")
    else:
        out.mkdir()
        (out / "mine").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    more = ["--verdict", str(verdict)] if mistake == "verdict" else []
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(out), *more]) == 2
    err = capsys.readouterr().err
    assert f"--{mistake}" in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


FULL_DISK = """
import resource, signal, sys
from sinktrain.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails instead, as on a disk that is full
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(["export", sys.argv[1], sys.argv[2]]))
"""


def test_a_full_disk(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, SinkConfig())
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-c", FULL_DISK, str(checkpoint), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--out: cannot be written" in done.stderr, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("sinktrain export")]) == 1
    assert "Traceback" not in done.stderr and sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_is_full_behind_the_weights(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The tokenizer is written in Rust, the streaming engine in Python."""
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, SinkConfig())
    before, small = sorted(tmp_path.rglob("*")), 45_000
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for long in ("generate.py", "tokenizer.json"):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            if long == "tokenizer.json":
                patch.setattr("sinktrain.export.export.save_tokenizer", too_long)
            resource.setrlimit(resource.RLIMIT_FSIZE, (small, hard))  # Python lets a write fail then
            try:
                status = main(["export", str(checkpoint), str(tmp_path / "out"), "--shard_size", "40KB"])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        err = capsys.readouterr().err
        assert status == 2 and "--out: cannot be written" in err and "choose another place" in err, (long, err)
        assert err.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before


def too_long(tokenizer: Any, folder: Path) -> None:
    tokenizer.add_tokens([f"word{n}" for n in range(2000)])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("place", [".", "kept", "kept/last.ckpt"])
def test_what_is_read_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whatever it is: refused before it is looked at."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "last.ckpt").write_text("weeks of work")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sinktrain.export.export.open_checkpoint", lambda *_: pytest.fail("it goes on"))
    (tmp_path / "other.ckpt").symlink_to(tmp_path / "kept" / "last.ckpt")
    for checkpoint, *more in (
        ("kept/last.ckpt",), ("other.ckpt",), ("../none.ckpt", "--verdict", "kept/last.ckpt")
    ):  # fmt: skip
        assert main(["export", checkpoint, place, *more, "--overwrite", "true"]) == 2
        err = capsys.readouterr().err
        said = {".": "is the folder that you are in", "kept": "would be lost", "kept/last.ckpt": "is a file"}[place]
        assert f"--out {place}: " in err and said in err and err.count("\n") == 1
    assert (tmp_path / "kept" / "last.ckpt").read_text() == "weeks of work"


@pytest.mark.parametrize("size", ["much", "0", "-5MB"])
def test_sizes(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, SinkConfig())
    capsys.readouterr()
    assert main(["export", str(checkpoint), str(tmp_path / "out"), f"--shard_size={size}"]) == 2
    err = capsys.readouterr().err
    assert f"--shard_size {size}: is no size" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
