"""Whole models with an outlet: what is shared between kinds, and peers of transformers that have sink logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import VOCABULARY, tiny_model
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import NAME, add_outlet
from sinktrain.sinks.attention import _written_out
from sinktrain.training import OptimizerConfig, SinkModule
from sinktrain.training.checkpoints import load_checkpoint
from sinktrain.training.masks import WithoutMasks, document_mask, unmasked_attention

SINKS = {
    "none": SinkConfig(kind="none"),
    "token": SinkConfig(),
    "two": SinkConfig(count=2),
    "zero": SinkConfig(kind="zero"),
    "logit": SinkConfig(kind="logit"),
    "kv": SinkConfig(kind="kv"),
    "k": SinkConfig(kind="kv", value="zero"),
}
OUTLETS = ["zero", "logit", "kv", "k"]
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
IDS = torch.randint(2, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))


def loud_sinks(model: PreTrainedModel) -> None:
    """Outlets that get a good part of the attention: one whose logit is 0 would not be seen."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "sink" in name:
                weight.copy_(3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))


def loss_and_gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(input_ids=IDS, labels=IDS, use_cache=False)
    output.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach(), **found}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-10) -> None:
    assert found.keys() == expected.keys() and len(found) > 5
    for name, x in expected.items():
        assert float((found[name] - x).abs().max()) <= bound * float(x.abs().max().clamp(min=1)), name


@pytest.mark.parametrize("tied", [True, False])
def test_kinds_differ_in_their_sinks_alone(tokenizer_folder: Path, tied: bool) -> None:
    """The same weights to the bit, the same rows, and the same random numbers in the training to come."""
    states, following = {}, set()
    for name, sink in SINKS.items():
        torch.manual_seed(5)
        module = SinkModule(config={**LLAMA, "tie_word_embeddings": tied}, tokenizer=str(tokenizer_folder), sink=sink)
        module.configure_model()
        following.add(float(torch.rand(())))
        states[name] = module.model.state_dict()
    assert len(following) == 1
    rows = len(module.tokenizer)
    for name, state in states.items():
        own = {key for key in state if "sink" in key}
        assert len(own) == 2 * {"logit": 1, "kv": 2, "k": 1}.get(name, 0)
        assert state.keys() - own == states["none"].keys()
        for key, expected in states["none"].items():
            n = rows if "embed" in key or "lm_head" in key else None  # what pads the vocabulary is no text
            assert torch.equal(state[key][:n], expected[:n]) and state[key].shape == expected.shape, (name, key)
    assert all(float(state.abs().max()) < 1 for state in states["kv"].values() if state.dim() == 2)
    others = {key: x for key, x in states["kv"].items() if "sink_key" in key}
    assert len({float(x[0, 0]) for x in others.values()}) == 2  # another key in each layer


def test_logit_equals_granite_swa() -> None:
    """A Llama with sink logits, and that architecture with all multipliers 1; see `export.stock` for the fields."""
    ours = tiny_model("llama", torch.float64)
    add_outlet(ours, SINKS["logit"])
    loud_sinks(ours)
    old: Any = ours.config
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "rope_parameters")  # fmt: skip
    config = AutoConfig.for_model(
        "granite_swa", **{name: getattr(old, name) for name in fields}, attention_multiplier=old.head_dim**-0.5,
        layer_types=["full_attention"] * old.num_hidden_layers,
    )  # fmt: skip
    peer = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager")
    peer.load_state_dict(ours.state_dict())
    assert_same(loss_and_gradients(ours), loss_and_gradients(peer), 1e-5)  # its angles are float32
    with torch.no_grad():
        for layer in peer.model.layers:
            layer.self_attn.sinks.fill_(-1e4)
    assert not torch.allclose(peer(IDS).logits, ours(IDS).logits, atol=1e-2)


def test_logit_takes_the_sinks_that_an_architecture_has() -> None:
    """gpt-oss: sink logits, and windows in every other layer; against its own eager attention."""
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, sliding_window=6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (1 if "_proj" in name or "sinks" in name else 0.3))
    expected, names = loss_and_gradients(model), set(model.state_dict())
    add_outlet(model, SINKS["logit"])
    assert set(model.state_dict()) == names and model.config._attn_implementation == NAME
    assert_same(loss_and_gradients(model), expected, 1e-4)
    with pytest.raises(UserError, match=r"sink\.kind zero.*gpt_oss"):
        add_outlet(model, SINKS["zero"])


def test_zero_is_a_logit_of_nothing_and_a_key_of_nothing() -> None:
    found = {}
    for kind in OUTLETS[:2] + OUTLETS[3:]:
        model = tiny_model("llama", torch.float64)
        add_outlet(model, SINKS[kind])
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "sink" in name:
                    weight.zero_()
        found[kind] = {name: x for name, x in loss_and_gradients(model).items() if "sink" not in name}
    assert_same(found["logit"], found["zero"])
    assert_same(found["k"], found["zero"])
    assert not torch.allclose(found["zero"]["logits"], tiny_model("llama", torch.float64)(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "mistral"])
@pytest.mark.parametrize("training", [True, False])
def test_packed_documents_are_as_if_alone(kind: str, model_type: str, training: bool, tokenizer_folder: Path) -> None:
    """In the module's own forward, with our masks and those of transformers; with a window in the last of them."""
    fields = {"sliding_window": 5} if model_type == "mistral" else {}
    module = SinkModule(
        config={**LLAMA, **fields, "model_type": model_type}, tokenizer=str(tokenizer_folder), sink=SINKS[kind]
    )
    module.configure_model()
    if training:
        WithoutMasks().on_fit_start(None, module)  # type: ignore[arg-type]
    loud_sinks(module.model.double().eval())
    with torch.no_grad():
        for name, weight in module.model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "query_key_value")):
                weight.mul_(30)
    lengths = [[9, 1, 14], [24], [3, 3, 18]]
    ids = torch.cat((IDS, IDS[:1].flip(1)))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    with torch.no_grad():
        together = module(ids, positions)
        for row, found, parts in zip(ids, together, lengths, strict=True):
            alone = torch.cat([module(part[None])[0] for part in row.split(parts)])
            assert torch.allclose(found, alone, atol=1e-8)
        assert not torch.allclose(module(ids), together, atol=1e-3)


class StopAt(L.Callback):
    """Ends a run early, whose schedule is that of the whole."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize("kind", OUTLETS)
def test_generating_with_a_static_cache(kind: str) -> None:
    """Whose first tokens come without a mask into a cache that has room for more."""
    model = tiny_model("llama")
    add_outlet(model, SINKS[kind])
    loud_sinks(model)
    model.generation_config.disable_compile = True
    options = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    expected = model.generate(IDS[:, :9], **options)
    found = model.generate(IDS[:, :9], cache_implementation="static", **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.allclose(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("form", ["fused", "written out"])
def test_padding_in_front_is_nobodys(family: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With soft caps too, and in the form without a kernel: a row that sees nothing must not spoil the others."""
    if form == "written out":
        monkeypatch.setattr("sinktrain.sinks.attention._flash", lambda q, k, v, logits, own, bias, causal, scale: (
            _written_out(q, k, v, logits, own, bias, scale, None)
        ))  # fmt: skip
    if family == "llama":
        model = tiny_model("llama")
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
            "gemma2", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=6, attn_logit_softcapping=2.0,
        )).eval()  # fmt: skip
    add_outlet(model, SINKS["logit"])
    loud_sinks(model)
    padded = torch.cat((IDS[:1, :3], IDS[:1]), dim=1)
    mask = torch.cat((torch.zeros(1, 3), torch.ones(1, 24)), dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0).long()
    with torch.no_grad():
        found = model(padded, attention_mask=mask, position_ids=places, use_cache=False).logits
        assert torch.allclose(found[:, 3:], model(IDS[:1], use_cache=False).logits, atol=1e-4)


def test_layers_that_see_chunks_keep_their_masks() -> None:
    """Llama 4's are told by a mask alone, so the attention without masks is not for it."""
    config = AutoConfig.for_model(
        "llama4_text", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_chunk_size=8,
        num_local_experts=2, attention_dropout=0.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    add_outlet(model, SINKS["zero"])
    assert unmasked_attention(model) is None


def test_a_run_that_fails_gives_the_attention_back(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    module = SinkModule(
        config=LLAMA, tokenizer=str(tokenizer_folder), sink=SINKS["none"], optimizer=OptimizerConfig(warmup_steps=1)
    )
    seen: list[str] = []

    class Fails(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(module.model.config._attn_implementation)
            raise RuntimeError("in the middle")

    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, default_root_dir=tmp_path, callbacks=[Fails()],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="in the middle"):
        trainer.fit(module, SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2))
    assert seen == ["sinktrain_unmasked_sdpa"] and module.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", OUTLETS)
def test_a_checkpoint_brings_the_outlet_back(
    kind: str, tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    def fit(steps: int, folder: Path, resume: Path | None = None) -> tuple[SinkModule, Path]:
        optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1)
        module = SinkModule(config=LLAMA, tokenizer=str(tokenizer_folder), sink=SINKS[kind], optimizer=optimizer)
        trainer = L.Trainer(
            max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            limit_val_batches=0, default_root_dir=folder, callbacks=[StopAt(steps)],
        )  # fmt: skip
        data = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
        trainer.save_checkpoint(folder / f"{steps}.ckpt")
        return module.eval(), folder / f"{steps}.ckpt"

    whole, at = fit(6, tmp_path)
    assert whole.model.config._attn_implementation == NAME  # which sees padding, as that of training does not
    padded = torch.cat((IDS[:1, :3], IDS[:1]), dim=1)
    mask = torch.cat((torch.zeros(1, 3), torch.ones(1, 24)), dim=1)
    with torch.no_grad():
        found = whole.model(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0).long()).logits
        assert torch.allclose(found[:, 3:], whole(IDS[:1]), atol=1e-5)
    found = load_checkpoint(at)
    assert found.sink == SINKS[kind] and not found.model.training
    with torch.no_grad():
        assert torch.allclose(found.model(IDS).logits, whole(IDS), atol=1e-6)
        loud_sinks(found.model)
        if kind != "zero":
            assert not torch.allclose(found.model(IDS).logits, whole(IDS), atol=1e-3)
    _, half = fit(3, tmp_path)
    resumed, _ = fit(6, tmp_path, half)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
        if "sink" in name:
            assert float((weight - load_checkpoint(half).model.state_dict()[name]).abs().max()) > 1e-4  # it learns


def test_what_cannot_have_an_outlet_is_refused() -> None:
    bloom = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("bloom", vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    )
    with pytest.raises(UserError, match=r"sink\.kind logit: bloom .*sink\.kind token"):
        add_outlet(bloom, SINKS["logit"])
    with pytest.raises(UserError, match=r"attention dropout 0\.1"):
        add_outlet(tiny_model("llama", attention_dropout=0.1), SINKS["zero"])
    gpt2 = AutoConfig.for_model("gpt2", vocab_size=97, n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(UserError, match=r"attention dropout 0\.1"):  # which calls it attn_pdrop
        add_outlet(AutoModelForCausalLM.from_config(gpt2), SINKS["kv"])
    falcon = AutoConfig.for_model("falcon", vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(UserError, match=r"sink\.kind zero: falcon"):
        add_outlet(AutoModelForCausalLM.from_config(falcon), SINKS["zero"])
    assert unmasked_attention(AutoModelForCausalLM.from_config(falcon).eval()) is None
    model = tiny_model("llama")
    add_outlet(model, SINKS["none"])
    add_outlet(model, SINKS["token"])
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"kind": "attention"}, "sink.kind attention"),
        ({"kind": "token", "count": 0}, "sink.count 0"),
        ({"kind": "kv", "count": 2}, "sink.count 2"),
        ({"kind": "kv", "value": "one"}, "sink.value one"),
        ({"kind": "logit", "value": "zero"}, "sink.value zero"),
        ({"init": "none"}, "sink.init none"),
    ],
)
def test_settings_that_mean_nothing(fields: dict[str, Any], option: str) -> None:
    with pytest.raises(UserError, match=option):
        SinkConfig(**fields)


@pytest.mark.parametrize("kind", SINKS)
def test_documents_as_on_a_gpu(kind: str, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention and its block masks, unfused and without gradients, since on CPU there are none."""

    def eager(*args: Any, training: bool = False, **options: Any) -> Any:
        return flex_attention(*args, **options)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", eager)
    monkeypatch.setattr("sinktrain.sinks.attention._compiled_flex", lambda: flex_attention)
    monkeypatch.setattr("sinktrain.training.masks._block_mask", lambda: create_block_mask)
    module = SinkModule(config=LLAMA, tokenizer=str(tokenizer_folder), sink=SINKS[kind])
    module.configure_model()
    WithoutMasks().on_fit_start(None, module)  # type: ignore[arg-type]
    loud_sinks(module.model.eval())
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in ([9, 1, 14], [20, 4])])
    with torch.no_grad():
        expected = module(IDS, positions)
        assert document_mask(module.model, positions).shape == (2, 1, 24, 24)
        monkeypatch.setattr("sinktrain.training.masks._fits_flex", lambda model, device: True)
        assert isinstance(document_mask(module.model, positions), BlockMask)
        assert torch.allclose(module(IDS, positions), expected, atol=1e-5)
        assert not torch.allclose(module(IDS), expected, atol=1e-4)
