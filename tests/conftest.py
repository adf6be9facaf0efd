"""Tiny random models of several families, and a tokenizer, for all tests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from chat_templates import CHATML, chat_tokenizer
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from sinktrain.data.prepare import prepare

if TYPE_CHECKING:
    from faults import Faults
    from forking import Ranks

VOCABULARY = 97

torch.set_num_threads(1)  # threads only get in the way of models this small

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.25, "hidden_size": 64},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16},
}


class Float64Rotary(torch.nn.Module):
    """The rotary embedding of transformers with angles in float64; theirs are float32 in a float64 model too."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inner.inv_freq.double(), persistent=False)
        self.scaling = inner.attention_scaling

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        angles = position_ids.double()[..., None] * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)


def tiny_model(
    family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **fields: Any
) -> PreTrainedModel:
    """A random model whose attention is far from uniform, so that a wrong mask or distance shows."""
    settings = {**_SHARED, **FAMILIES[family], **fields}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(8 if any(part in name for part in ("q_proj", "k_proj", "query_key_value")) else 3)
    if dtype == torch.float64:
        base = model.base_model
        base.rotary_emb = Float64Rotary(base.rotary_emb)
    return model.eval()


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


SENTENCE = "the cat sat on a mat and the dog ran to it while we all saw how they went home again in rain"
WORDS = SENTENCE.split()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 300 entries, saved as a folder: the tokenizer of the tiny models on disk."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, vocab_size=300, special_tokens=["<|endoftext|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>")
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokenizer, as `from_pretrained` loads it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["tied", "untied"])
def either(request: pytest.FixtureRequest, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, with a tied head and without."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model("llama", vocab_size=len(tokenizer), tie_word_embeddings=request.param == "tied").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def some_text(words: int, seed: int) -> str:
    """Text that a tiny model can learn something from: each word depends on the one before."""
    generator = random.Random(seed)
    place, out = generator.randrange(len(WORDS)), []
    for _ in range(words):
        out.append(WORDS[place])
        place = (place * 3 + generator.choice([1, 2])) % len(WORDS)
    return " ".join(out)


@pytest.fixture(scope="session")
def prepared_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty short documents, prepared for the tiny model."""
    folder = tmp_path_factory.mktemp("prepared")
    source = folder / "source.txt"
    source.write_text("\n\f\n".join(some_text(120, seed) for seed in range(30)))
    return prepare(str(source), folder / "data", tokenizer=str(model_folder), validation_fraction=0.3)


@pytest.fixture(scope="session")
def chatty(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("chatty")
    chat_tokenizer(tokenizer_folder, CHATML).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def talked(chatty: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty conversations, prepared; `talks.jsonl` beside the folder is where they came from."""
    from chat_talks import talks, write

    root = tmp_path_factory.mktemp("talks")
    return prepare(write(root / "talks.jsonl", talks(80)), root / "out", chatty, chat=True, validation_fraction=0.2)


_FAULTS: list[Faults] = []


@pytest.fixture(scope="session")
def starter() -> Iterator[Ranks]:
    """Starts runs of one or several real processes, in a second each."""
    from forking import Ranks

    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def faults() -> Faults:
    """Counts what faults do to runs; its table is printed when all tests are done."""
    from faults import Faults

    _FAULTS.append(Faults())
    return _FAULTS[0]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what the faults did."""
    for line in _FAULTS[0].table() if _FAULTS else []:
        terminalreporter.write_line(line)


@pytest.fixture
def text() -> Tensor:
    return torch.randint(0, VOCABULARY, (90,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def plain_checkpoint(model_folder: Path, prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after two steps of training with a sink."""
    import lightning as L

    from sinktrain.data import SinkDataModule
    from sinktrain.training import OptimizerConfig, SinkModule

    folder = tmp_path_factory.mktemp("trained")
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    module = SinkModule(name=str(model_folder), optimizer=OptimizerConfig(warmup_steps=1))
    trainer.fit(module, SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"
