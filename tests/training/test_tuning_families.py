"""Modes of tuning for many families, heads and tokenizers: one sink in front, the right row, a plain model back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, some_text, tiny_model
from tokenizers import ByteLevelBPETokenizer, processors
from tokenizers.implementations import SentencePieceBPETokenizer, SentencePieceUnigramTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from tuned_runs import changed, fitted, make

from sinktrain.data.prepare import prepare
from sinktrain.export.export import export
from sinktrain.streaming import CacheSpec, stream_nll
from sinktrain.training.saving import Checkpoints

GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gpt_neox": {"rotary_pct": 0.25},
    "phi": {"partial_rotary_factor": 0.5},
    "gemma": {**GROUPED, "head_dim": 8},
    "falcon": {"alibi": False, "new_decoder_architecture": False, "multi_query": True},
    "bloom": {"n_layer": 3, "n_head": 4},
}
TOKENIZERS = ["byte-level", "byte-level with BOS", "sentencepiece BPE with BOS", "sentencepiece unigram"]


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of the `TOKENIZERS`, with a BOS in front of every text where it says so."""
    text = [" ".join(WORDS)] * 4
    special = ["<unk>", "<s>", "</s>"]
    if kind.startswith("byte"):
        made: Any = ByteLevelBPETokenizer()
        made.train_from_iterator(text, vocab_size=300, special_tokens=special)
    elif "BPE" in kind:
        made = SentencePieceBPETokenizer()
        made.train_from_iterator(text, vocab_size=80, special_tokens=special)
    else:
        made = SentencePieceUnigramTokenizer()
        made.train_from_iterator(text, vocab_size=80, special_tokens=special, unk_token="<unk>")
    names = {"eos_token": "</s>", "unk_token": "<unk>"}
    if kind.endswith("BOS"):
        names["bos_token"] = "<s>"
        bos = made.token_to_id("<s>")
        made._tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, **names)


def make_model(family: str, tied: bool, kind: str, folder: Path) -> Path:
    """A tiny random model of the family on disk, with its tokenizer, and more rows than tokens, as many have."""
    tokenizer = make_tokenizer(kind)
    fields = {"vocab_size": len(tokenizer) + 40, "tie_word_embeddings": tied, **FAMILIES[family]}
    tiny_model("llama", model_type=family, **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_text(model: Path, folder: Path) -> Path:
    (folder / "text.txt").write_text("\n\f\n".join(some_text(150, seed) for seed in range(12)))
    return prepare(str(folder / "text.txt"), folder / "data", tokenizer=str(model), validation_fraction=0.2)


def check(family: str, tied: bool, mode: str, kind: str, tmp_path: Path) -> None:
    """Trains three steps, and looks at everything that a user would."""
    folder = make_model(family, tied, kind, tmp_path / "base")
    data, has_bos = make_text(folder, tmp_path), kind.endswith("BOS")
    plain = AutoTokenizer.from_pretrained(folder)("the cat", add_special_tokens=False).input_ids
    module = make(folder, mode, distill=0.5)
    assert module.front == ([module.tokenizer.convert_tokens_to_ids("<s>")] if has_bos else [])
    module.configure_model()
    assert (module.model.get_output_embeddings().weight is module.model.get_input_embeddings().weight) == tied
    start = {name: value.clone() for name, value in module.model.state_dict().items()}
    recorder = fitted(module, data, tmp_path, 3, callbacks=[Checkpoints(str(tmp_path / "kept"))])
    sink = module.sink_ids[0]
    assert len(recorder.batches) == 3
    for ids in recorder.batches:
        assert (ids[:, 0] == sink).all() and not (ids[:, 1:] == sink).any()
    if mode != "full":
        others = torch.arange(len(module.model.get_input_embeddings().weight)) != sink
        table = next(n for n, v in module.model.named_parameters() if v is module.model.get_input_embeddings().weight)
        assert torch.equal(module.model.state_dict()[table][others], start[table][others])
        assert not torch.equal(module.model.state_dict()[table][sink], start[table][sink])
        left = {name for name in changed(module, start) if not any(part in name for part in ("lora_", "norm", "ln_"))}
        head = {"lm_head.weight", "embed_out.weight"} if tied else set()
        assert left - head == {table, f"{table.rpartition('.')[0]}.sink_rows"}
    out = export(tmp_path / "kept", tmp_path / "model")
    exported = AutoModelForCausalLM.from_pretrained(out).eval()
    again = AutoTokenizer.from_pretrained(out)
    ids = again("the cat").input_ids
    assert ids == [sink, *plain]
    with torch.no_grad():
        rows = torch.tensor([ids])
        expected = module.model.eval()(input_ids=rows, use_cache=False).logits
        torch.testing.assert_close(exported(input_ids=rows).logits, expected, rtol=1e-4, atol=1e-4)
    text = torch.tensor([sink, *torch.randint(3, 70, (60,), generator=torch.Generator().manual_seed(0)).tolist()])
    assert torch.isfinite(stream_nll(exported, text, CacheSpec(1, 15))).all()


@pytest.mark.parametrize("mode", ["sink_only", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family: str, mode: str, tmp_path: Path) -> None:
    """With one tokenizer each, tied and untied in turn; all combinations are in the slow test."""
    number = list(FAMILIES).index(family)
    check(family, number % 2 == 0, mode, TOKENIZERS[number % len(TOKENIZERS)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("mode", ["sink_only", "embed", "lora", "full"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_combination(family: str, tied: bool, mode: str, kind: str, tmp_path: Path) -> None:
    check(family, tied, mode, kind, tmp_path)
