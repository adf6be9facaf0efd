"""Secrets are planted in the environment and in options, every verb is run, and every byte written is searched."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from conftest import some_text

CONFIG = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
          "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip
SECRETS = {
    "HF_TOKEN": "hf_" + "Planted0" * 4,
    "WANDB_API_KEY": "0badc0de" * 5,
    "MY_SERVICE_PASSWORD": "correct-horse 'battery'",
    "option": "staple7",  # in no variable: given to an option whose name says what it is
    "address": "PlantedInAnURL",
}
BROKEN = """import sinktrain.base.secrets as secrets
secrets._clean = lambda tree, known, *, hide: tree
secrets._secret_values = lambda arguments: {}
"""
MAIN = "import sys; from sinktrain.cli import main; sys.exit(main())"


def run(folder: Path, code: str, *arguments: str, status: tuple[int, ...] = (0,)) -> bytes:
    """Runs the command line in `folder` with the secrets around it and returns all that it said."""
    planted = {name: value for name, value in SECRETS.items() if name.isupper()}
    environment = {**os.environ, **planted, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code + MAIN, *arguments], cwd=folder, env=environment, capture_output=True, timeout=240
    )
    assert done.returncode in status, done.stderr.decode()
    return done.stdout + done.stderr


def logger(name: str, **arguments: object) -> dict[str, object]:
    return {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": arguments}


def fit_settings(folder: Path, tokenizer: Path) -> dict[str, object]:
    """A run with every logger; secrets are in the name of its tokenizer, in a logger's argument and in the config."""
    logs = str(folder / "logs")
    loggers = [logger("CSVLogger", save_dir=logs), logger("TensorBoardLogger", save_dir=logs)]
    loggers[1]["dict_kwargs"] = {"comment": SECRETS["MY_SERVICE_PASSWORD"]}
    try:
        import wandb  # noqa: F401

        loggers.append(logger("WandbLogger", save_dir=logs, notes=f"of https://me:{SECRETS['address']}@host/x"))
    except ImportError:
        pass
    return {
        "model": {"config": {**CONFIG, "auth_token": SECRETS["option"]}, "tokenizer": str(tokenizer),
                  "optimizer": {"warmup_steps": 1}},
        "data": {"path": str(folder / "data"), "sequence_length": 32, "batch_size": 4},
        "trainer": {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, "logger": loggers,
                    "log_every_n_steps": 1, "default_root_dir": str(folder / "logs"),
                    "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                                   "init_args": {"dirpath": str(folder / "kept"), "save_last": True}}]},
    }  # fmt: skip


def all_verbs(folder: Path, tokenizer: Path, code: str = "") -> bytes:
    """The main job from text to page, with secrets in names and options; returns what was said."""
    own = folder / f"tokenizer-{SECRETS['MY_SERVICE_PASSWORD']}"
    own.symlink_to(tokenizer)
    source = folder / f"{SECRETS['HF_TOKEN']}.txt"
    source.write_text("\n\f\n".join(some_text(120, seed) for seed in range(20)))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    remote = f"https://me:{SECRETS['address']}@example.org/x.git"
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=folder, check=True)
    said = run(folder, code, "prepare", "--source", str(source), "--tokenizer", str(own), "--out", "data",
               "--validation_fraction", "0.3")  # fmt: skip
    (folder / "given.yaml").write_text(yaml.safe_dump(fit_settings(folder, own)))
    said += run(folder, code, "fit", "--config", "given.yaml", "--model.tokenizer", str(own))
    (folder / "given.yaml").rename(folder / "given")
    checkpoint = "kept/last.ckpt"
    said += run(folder, code, "evaluate", "--model.name", checkpoint, "--text", str(source), "--out", "results",
                "--caches", "0+16 1+15 4+12", "--tokens", "200", "--recompute", "20")  # fmt: skip
    said += run(folder, code, "verify", "--results", "results", "--cache", "1+15", "--against", "4+12",
                "--resamples", "100", status=(0, 1, 2))  # fmt: skip
    said += run(folder, code, "export", "--checkpoint", checkpoint, "--out", "model", "--verdict",
                "results/verdict.json")  # fmt: skip
    said += run(folder, code, "report", "--results", "results", "--verdict", "results/verdict.json", "--settings",
                "given", "--out", "report.html")  # fmt: skip
    said += run(folder, code, "prepare", "--source", f"https://me:{SECRETS['address']}@host/{SECRETS['HF_TOKEN']}",
                "--tokenizer", str(own), "--out", "more", status=(2,))  # fmt: skip
    said += run(
        folder, code, "fit", "--config", "given", "--model.x_api_key", SECRETS["option"], "--debug", status=(2,)
    )
    (folder / "given").unlink()
    source.unlink()
    own.unlink()
    subprocess.run(["rm", "-r", str(folder / ".git")], check=True)
    return said


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file, and every entry of those that are archives, unpacked."""
    for path in sorted(folder.rglob("*")):
        yield f"the name of {path}", str(path.relative_to(folder)).encode()
        if path.is_file():
            yield str(path), path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for name in archive.namelist():
                        yield f"{path}/{name}", archive.read(name)


def found(folder: Path, said: bytes) -> set[tuple[str, str]]:
    """Where which secret is, as it stands or as JSON, YAML or an URL would spell it."""
    hits = set()
    for place, content in [("what was said", said), *contents(folder)]:
        for name, secret in SECRETS.items():
            spelled = {secret, quote(secret, safe=""), secret.replace("'", "''"), secret.split(" ")[0],
                       secret.replace("'", "&#39;")}  # fmt: skip
            if any(each.encode() in content for each in spelled):
                hits.add((name, place.removeprefix(str(folder))))
    return hits


@pytest.mark.slow
def test_no_secret_is_written_or_said(tokenizer_folder: Path, tmp_path: Path) -> None:
    said = all_verbs(tmp_path, tokenizer_folder)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files >= {"manifest.json", "run.json", "config.yaml", "hparams.yaml", "last.ckpt", "results.json",
                     "verdict.json", "model.safetensors", "README.md", "report.html"}  # fmt: skip
    assert found(tmp_path, said) == set()


@pytest.mark.slow
def test_without_redaction_every_secret_is_found(tokenizer_folder: Path, tmp_path: Path) -> None:
    said = all_verbs(tmp_path, tokenizer_folder, BROKEN)
    hits = found(tmp_path, said)
    assert {name for name, _ in hits} >= {"HF_TOKEN", "MY_SERVICE_PASSWORD", "option", "address"}
    places = " ".join(place for _, place in hits)
    for file in ("manifest.json", "run.json", "config.yaml", "results.json", "report.html", "what was said"):
        assert file in places


def test_the_search_looks_into_archives(tmp_path: Path) -> None:
    secret = SECRETS["HF_TOKEN"]
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", f"{secret} " * 50)
    assert secret.encode() not in zlib.compress(secret.encode() * 50)[:20]
    assert found(tmp_path, b"") == {("HF_TOKEN", "/a.ckpt/data.pkl")}
    assert found(tmp_path, b"correct-horse ''battery''") >= {("MY_SERVICE_PASSWORD", "what was said")}
