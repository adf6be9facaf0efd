"""The single file streams like the engine that it is made of, beside an installed sinktrain."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from sinktrain.export import bundle as bundle_module
from sinktrain.export.bundle import bundle
from sinktrain.streaming import SinkCache


def load(folder: Path, name: str, cache: str) -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(bundle(cache))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return load(tmp_path_factory.mktemp("file"), "the_single_file", "2+14")


def test_it_names_nothing_of_ours_to_import() -> None:
    text = bundle("1+1023")
    assert "import sinktrain" not in text and "from sinktrain" not in text
    assert 'CACHE = "1+1023"' in text and "TYPE_CHECKING" not in text


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_it_streams_like_the_engine_and_beside_it(single_file: ModuleType, family: str) -> None:
    if family == "llama":
        model = tiny_model("llama")
    else:
        torch.manual_seed(0)
        config = AutoConfig.for_model("bloom", vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
        model = AutoModelForCausalLM.from_config(config).eval()
    prompt = torch.randint(3, 97, (1, 30), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    cache = SinkCache.for_model(model, "2+14")
    expected = model.generate(prompt, past_key_values=cache, **options)
    assert torch.equal(single_file.generate(model, prompt, **options), expected)
    assert torch.equal(single_file.generate(model, prompt, cache="2+14", **options), expected)
    if family == "llama":  # the other says the same word on and on
        assert not torch.equal(single_file.generate(model, prompt, cache="0+6", **options), expected)
    again = model.generate(prompt, past_key_values=SinkCache.for_model(model, "2+14"), **options)
    assert torch.equal(again, expected)  # the file's hooks on the same model are in nobody's way


def test_two_files_on_one_model(single_file: ModuleType, tmp_path: Path) -> None:
    model, other = tiny_model("llama"), load(tmp_path, "another_file", "1+5")
    prompt = torch.randint(3, 97, (1, 30), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    found = [file.generate(model, prompt, **options) for file in (single_file, other, single_file)]
    for cache, tokens in zip(("2+14", "1+5", "2+14"), found, strict=True):
        assert torch.equal(model.generate(prompt, past_key_values=SinkCache.for_model(model, cache), **options), tokens)
    assert not torch.equal(found[0], found[1])


def test_names_that_stand_in_two_modules_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MODULES", ("sinktrain.streaming.spec", "sinktrain.streaming.spec"))
    with pytest.raises(ValueError, match=r"CacheSpec.* stands in another module"):
        bundle("1+1023")
