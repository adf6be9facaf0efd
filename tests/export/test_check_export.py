"""`sinktrain check-export` holds for what `export` wrote, and fails for what was broken afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import LLAMA, checkpoint_of, trained_checkpoint

from sinktrain.cli import main
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule

CHATML = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, prepared_folder: Path
) -> tuple[Path, Path]:  # fmt: skip
    """A checkpoint, and what was exported of it, with a chat template."""
    place = tmp_path_factory.mktemp("exported")
    base = place / "base"
    shutil.copytree(model_folder, base)
    (base / "chat_template.jinja").write_text(CHATML)
    _, checkpoint = trained_checkpoint(base, prepared_folder, place, SinkConfig())
    assert main(["export", str(checkpoint), str(place / "model"), "--shard-size", "50KB"]) == 0
    assert len(list((place / "model").glob("model-*.safetensors"))) > 1
    return checkpoint, place / "model"


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["check-export", *map(str, arguments)])
    return status, capsys.readouterr().out


def test_holds(exported: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, folder = exported
    status, out = said(capsys, folder, "--checkpoint", checkpoint)
    assert status == 0 and "FAILED" not in out and "all checks hold" in out and "not compared" not in out, out
    for claim in (
        "plain text begins with the sink, exactly once", "a pair begins", "a batch begins", "chat begins",
        "chat, as text, saved again begins", "custom_generate gives tokens and no sink",
        "tokens are the checkpoint's: root mean square 0 of theirs apart, 0 allowed", "streams as the checkpoint does",
    ):  # fmt: skip
        assert claim in out, claim
    status, out = said(capsys, folder)
    assert status == 0 and "not compared" in out and "streams as" not in out


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_rounded_weights_are_near(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    checkpoint, _ = exported
    assert main(["export", str(checkpoint), str(tmp_path / "model"), "--dtype", dtype]) == 0
    status, out = said(capsys, tmp_path / "model", "--checkpoint", checkpoint)
    assert status == 0 and f"in {dtype}" in out and "0.03 allowed" in out, out
    assert "not compared: streams" in out


@pytest.mark.parametrize(("kind", "count"), [pytest.param("none", 0, marks=pytest.mark.slow), ("token", 3)])
def test_other_counts(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: Any, count: int
) -> None:
    sink = SinkConfig(kind=kind, count=max(1, count))
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, sink)
    assert main(["export", str(checkpoint), str(tmp_path / "model")]) == 0
    assert json.loads((tmp_path / "model" / "sinktrain.json").read_text())["sink"]["count"] == count
    status, out = said(capsys, tmp_path / "model", "--checkpoint", checkpoint)
    assert status == 0 and ("has no sink" in out) == (count == 0), out


def test_an_outlet(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SinkModule(
        config=LLAMA, tokenizer=str(tokenizer_folder), sink=SinkConfig(kind="logit"),
        optimizer=OptimizerConfig(warmup_steps=1),
    )  # fmt: skip
    checkpoint = checkpoint_of(module, prepared_folder, tmp_path)
    assert main(["export", str(checkpoint), str(tmp_path / "model")]) == 0
    status, out = said(capsys, tmp_path / "model", "--checkpoint", checkpoint)
    assert status == 0 and "1e-05 allowed" in out, out


def second_sink(folder: Path) -> None:
    """As a tokenizer that adds its BOS beside what the template adds."""
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text())
    single = parts["post_processor"]["single"]
    single.insert(0, single[0])
    path.write_text(json.dumps(parts))


def no_sink(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))


def sink_in_chat_forgotten(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML)


def another_weight(folder: Path) -> None:
    for part in folder.glob("model-*.safetensors"):
        tensors = load_file(part)
        for name in tensors:
            if name.endswith("layers.0.mlp.up_proj.weight"):
                tensors[name][0] += 1e-3
        save_file(tensors, part, metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-100])


def sink_is_generated(folder: Path) -> None:
    """The row of the sink in the head wins always, and nothing suppresses it."""
    path = folder / "generation_config.json"
    fields = json.loads(path.read_text())
    assert fields.pop("suppress_tokens", None) or fields.pop("bad_words_ids", None)
    path.write_text(json.dumps(fields))
    sink = json.loads((folder / "sinktrain.json").read_text())["sink"]["ids"][0]
    for part in folder.glob("model-*.safetensors"):
        tensors = load_file(part)
        for name in tensors:
            if name.endswith(("lm_head.weight", "embed_tokens.weight")):
                tensors[name][sink] = 50 * torch.ones_like(tensors[name][sink])
        save_file(tensors, part, metadata={"format": "pt"})


def nothing_suppressed(folder: Path) -> None:
    """Which need not be seen in the few tokens that are generated; and a chat, which is another matter."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "suppress_tokens": None}))
    sink_in_chat_forgotten(folder)


def record_without_sink(folder: Path) -> None:
    """Behind which no text is found wanting; and a weight, which is another matter."""
    path = folder / "sinktrain.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "sink": {**fields["sink"], "kind": "none", "count": 0, "ids": []}}))
    another_weight(folder)


def code_of_another(folder: Path) -> None:
    """Which is not run: it would end the process."""
    path = folder / "custom_generate" / "generate.py"
    path.write_text(path.read_text().replace("def generate(model", "raise SystemExit(7)\n\n\ndef generate(model"))


@pytest.mark.parametrize(
    ("damage", "claims"),
    [
        (second_sink, "FAILED plain text begins"),
        pytest.param(no_sink, "FAILED plain text begins", marks=pytest.mark.slow),
        (nothing_suppressed, "FAILED the generation config suppresses the sink, FAILED chat begins"),
        (record_without_sink, "FAILED the tokenizer's sinks are those of sinktrain.json, FAILED logits of"),
        pytest.param(cut_short, "FAILED loads without sinktrain", marks=pytest.mark.slow),
        (code_of_another, "FAILED custom_generate is sinktrain's own code"),
        pytest.param(sink_is_generated, "FAILED generate gives tokens and no sink", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_fails(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None],
    claims: str,
) -> None:  # fmt: skip
    checkpoint, folder = exported
    shutil.copytree(folder, tmp_path / "model")
    damage(tmp_path / "model")
    status, out = said(capsys, tmp_path / "model", "--checkpoint", checkpoint)
    assert status == 1 and all(claim in out for claim in claims.split(", ")), out


def test_mistakes(exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = exported
    for arguments, said_of in (
        ([tmp_path], "holds no sinktrain.json"), ([folder, "--tokens", 0], "--tokens 0"),
        ([folder, "--checkpoint", tmp_path / "absent.ckpt"], "no such checkpoint"), ([folder, folder], "is no option"),
    ):  # fmt: skip
        assert main(["check-export", *map(str, arguments)]) == 2
        err = capsys.readouterr().err
        assert said_of in err and err.count("\n") == 1, err
