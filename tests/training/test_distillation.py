"""Distillation from the model as it was: the divergence, its gradient, and what the teacher is."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuned_runs import batch, fitted, make

from sinktrain.export.export import export
from sinktrain.sinks import SinkConfig
from sinktrain.training import SinkModule
from sinktrain.training.adapters import without_adapters
from sinktrain.training.saving import Checkpoints


def base_log_probabilities(folder: Path, text: Tensor) -> Tensor:
    """(L, V) of the model on disk, by transformers alone, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    with torch.no_grad():
        return model(input_ids=text[None]).logits[0].log_softmax(-1)


def expected_objective(
    module: SinkModule, folder: Path, data: dict[str, Tensor], share: float, front: list[int]
) -> float:
    """Written out, document by document: (1 - share) NLL + share KL(base || model)."""
    total = 0.0
    positions = data.get("position_ids", torch.arange(24).expand(3, -1))
    sinks = len(module.sink_ids)
    for ids, labels, places in zip(data["input_ids"], data["labels"], positions, strict=True):
        starts = [int(i) for i in (places == 0).nonzero().flatten()] + [len(ids)]
        for first, last in itertools.pairwise(starts):
            piece = ids[first:last]
            if (labels[first:last] == -100).all():
                continue
            with torch.no_grad():
                own = module.model(input_ids=piece[None], use_cache=False).logits[0].double().log_softmax(-1)
            text = piece[sinks:]
            before = [] if front and int(text[0]) == front[0] else front  # a text that brings its own BOS
            base = base_log_probabilities(folder, torch.cat((torch.tensor(before, dtype=torch.long), text)))
            for i in range(sinks - 1, len(piece) - 1):
                nll = -float(own[i, piece[i + 1]])
                total += (1 - share) * nll
                at = i - sinks + len(before)  # where the base predicts the same token
                if at >= 0:
                    p = base[at]
                    total += share * float((p.exp() * (p - own[i, : len(p)])).sum())
    return total


@pytest.fixture(params=["no BOS", "BOS"])
def with_front(request: pytest.FixtureRequest, either: Path, tmp_path: Path) -> tuple[Path, list[int]]:
    """A model whose tokenizer puts nothing in front of a text, and one whose tokenizer puts a BOS there."""
    if request.param == "no BOS":
        return either, []
    from tokenizers import processors

    tokenizer = AutoTokenizer.from_pretrained(either)
    AutoModelForCausalLM.from_pretrained(either).save_pretrained(tmp_path)
    bos = tokenizer.convert_tokens_to_ids("t")
    tokenizer.add_special_tokens({"bos_token": "t"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="t $A", pair="t $A $B", special_tokens=[("t", bos)]
    )
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, [bos]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    ("mode", "count"), [("sink_only", 1), ("sink_only", 2), ("lora", 1), ("embed", 1), ("full", 2)]
)
def test_distillation_is_the_divergence_from_the_model_as_it_was(
    with_front: tuple[Path, list[int]], mode: str, count: int, documents: bool
) -> None:
    folder, front = with_front
    module = make(folder, mode, distill=0.7, sink=SinkConfig(count=count))
    assert module.front == front
    module.configure_model()
    with torch.no_grad():  # as if it had been trained: the teacher must not follow
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        if module.rows is not None:
            module.rows.write_back()
    module.eval()
    data = batch(module, count, documents)
    if front and documents:
        data["input_ids"][:2, 10 + count] = data["labels"][:2, 10 + count] = front[0]
    objective, nll, _ = module.losses(data)
    expected = expected_objective(module, folder, data, 0.7, front)
    assert float(objective) == pytest.approx(expected, rel=1e-4)
    divergence = module.divergence(objective, nll)
    assert divergence is not None and float(divergence) == pytest.approx((expected - 0.3 * float(nll)) / 0.7, rel=1e-3)


@pytest.mark.parametrize("plain", [True, False])
def test_the_gradient_of_distillation(either: Path, plain: bool) -> None:
    """Chunk by chunk against autograd over all logits, in float64."""
    module = make(either, "lora", distill=0.4)
    module.configure_model()
    module.model.double()
    data = batch(module)
    module.plain_head = plain
    module.losses(data)[0].backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    ids = data["input_ids"]
    with torch.no_grad(), without_adapters(module.model):
        base = module.model(input_ids=ids[:, 1:]).logits[:, :-1, : module.known].log_softmax(-1)
    own = module.model(input_ids=ids).logits.log_softmax(-1)
    nll = F.nll_loss(own[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    kl = (base.exp() * (base - own[:, 1:-1, : module.known])).sum()
    (0.6 * nll + 0.4 * kl).backward()
    compared = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert set(found) == set(compared) and len(found) > 20
    dtype_of_sums = {"rtol": 1e-5, "atol": 1e-7} if plain else {"rtol": 1e-4, "atol": 1e-5}  # logits_loss is float32
    for name, gradient in compared.items():
        torch.testing.assert_close(found[name], gradient, **dtype_of_sums)


def test_distillation_holds_the_model_to_what_it_said(either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    """With the same steps, the divergence from the model as it was ends lower, and the loss higher."""
    ends = {}
    for share in (0.0, 1.0):
        module = make(either, "full", distill=share)
        fitted(module, prepared_folder, tmp_path, steps=12)
        judge = make(either, "full", distill=1.0)
        judge.configure_model()
        judge.model.load_state_dict(module.model.state_dict())
        objective, nll, _ = judge.losses(batch(judge))
        ends[share] = (float(objective), float(nll))
        logged = "train/kl" in module.trainer.callback_metrics
        assert logged == bool(share)
    assert ends[1.0][0] < 0.8 * ends[0.0][0]


@pytest.mark.parametrize("kind", ["logit", "kv", "zero"])
def test_the_model_as_it_was_has_no_outlet(kind: Any, model_folder: Path) -> None:
    mode = "lora" if kind == "zero" else "sink_only"
    module = make(model_folder, mode, distill=1.0, sink=SinkConfig(kind=kind))
    module.configure_model()
    data = batch(module)
    objective = module.losses(data)[0]
    expected = 0.0
    with torch.no_grad():
        own = module.model(input_ids=data["input_ids"], use_cache=False).logits.log_softmax(-1)
    for ids, found in zip(data["input_ids"], own, strict=True):
        p = base_log_probabilities(model_folder, ids)[:-1]
        expected += float((p.exp() * (p - found[:-1])).sum())
    assert expected > 0.01 and float(objective) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mode", ["sink_only", "lora"])
def test_a_sink_that_was_there_stays_as_it_was_for_distillation(
    mode: str, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    """The row goes on being trained, and what it is held to must not follow it."""
    fitted(make(model_folder, "sink_only"), prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "kept"))])
    out = export(tmp_path / "kept", tmp_path / "model")
    module = make(out, mode, distill=1.0)
    module.configure_model()
    with torch.no_grad():
        module.rows.parameter.add_(torch.randn(module.rows.parameter.shape, generator=torch.Generator().manual_seed(0)))
        module.rows.write_back()
        ids = batch(module)["input_ids"]
        own = module.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    expected = 0.0
    for row, found in zip(ids, own, strict=True):
        p = base_log_probabilities(out, row)[:-1]
        expected += float((p.exp() * (p - found[:-1])).sum())
    assert expected > 0.1 and float(module.losses(batch(module))[0]) == pytest.approx(expected, rel=1e-3)


def test_a_teacher_keeps_its_windows_in_packed_documents(tokenizer_folder: Path, tmp_path: Path) -> None:
    """An outlet minds windows without a mask; the model as it was must get one that has them."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tiny_model("mistral", vocab_size=len(tokenizer), sliding_window=4).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module = make(tmp_path, "full", distill=1.0, sink=SinkConfig(kind="zero"))
    module.configure_model()
    module.model.config._attn_implementation = module.unmasked  # as in a fit
    data = batch(module, documents=True)
    wanted = module.teacher.wanted(data["input_ids"], data["position_ids"], module._run)  # type: ignore[union-attr]
    base = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = base.base_model(input_ids=data["input_ids"][:, :10]).last_hidden_state
    torch.testing.assert_close(wanted.other[:, :10], expected, rtol=1e-4, atol=1e-4)  # type: ignore[index]


@pytest.mark.parametrize("mode", ["sink_only", "full"])
def test_a_band_is_held_to_what_the_model_said_of_the_whole_text(mode: str, either: Path) -> None:
    """The model in training sees what a cache of 1+7 keeps; the model as it was sees everything."""
    module = make(either, mode, distill=1.0, band="1+7")
    module.configure_model()
    module.eval()
    data = batch(module)
    ids = data["input_ids"]
    with torch.no_grad():
        objective = float(module.losses(data)[0])
        own = module(ids).log_softmax(-1)
        module.banded.end()  # type: ignore[union-attr]
        whole = module.model(input_ids=ids).logits.log_softmax(-1)
    expected = unbanded = 0.0
    for row, banded, full in zip(ids, own, whole, strict=True):
        base = base_log_probabilities(either, row[1:])[:-1]
        for found in (banded, full):
            divergence = float((base.exp() * (base - found[1:-1, : module.known])).sum())
            expected, unbanded = (
                (expected + divergence, unbanded) if found is banded else (expected, unbanded + divergence)
            )
    assert objective == pytest.approx(expected, rel=1e-4)
    assert abs(unbanded - expected) > 0.01 * expected
