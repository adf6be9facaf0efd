"""Modes of tuning: what moves and what does not, gradients, memory, distillation, and what a checkpoint gives back."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from test_training import Recorder, trainer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule, TuningConfig, load_checkpoint
from sinktrain.training.adapters import without_adapters
from sinktrain.training.saving import Checkpoints

MODES = ["sink_only", "embed", "lora", "full"]


def make(folder: Path, mode: str, **fields: Any) -> SinkModule:
    tuning = TuningConfig(mode=mode, distill=fields.pop("distill", 0.0))  # type: ignore[arg-type]
    fields = {"optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=1), **fields}
    return SinkModule(name=str(folder), tuning=tuning, **fields)


@pytest.fixture(scope="module", params=["tied", "untied"])
def either(request: pytest.FixtureRequest, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, with a tied head and without."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model("llama", vocab_size=len(tokenizer), tie_word_embeddings=request.param == "tied").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fitted(module: SinkModule, data: Path, folder: Path, steps: int = 4, **fields: Any) -> Recorder:
    recorder = Recorder()
    fields.setdefault("callbacks", []).append(recorder)
    batches = SinkDataModule(str(data), sequence_length=32, batch_size=4)
    trainer(folder, steps, gradient_clip_val=0.5, **fields).fit(module, batches)
    return recorder


def changed(module: SinkModule, start: dict[str, Tensor]) -> set[str]:
    now = module.model.state_dict()
    return {name for name in start if not torch.equal(now[name], start[name])}


@pytest.mark.parametrize("mode", MODES)
def test_only_what_the_mode_says_is_trained(mode: str, either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module = make(either, mode)
    module.configure_model()
    start = {name: value.clone() for name, value in module.model.state_dict().items()}
    recorder = fitted(module, prepared_folder, tmp_path)
    assert len(recorder.losses) == 4 and min(recorder.losses[1:]) < recorder.losses[0]
    moved = changed(module, start)
    rows = {name for name in moved if "embed_tokens" in name or "lm_head" in name}
    norms = {name for name in start if "norm" in name}
    if mode == "full":
        assert moved == set(start)
        return
    weight = module.model.get_input_embeddings().weight
    sink = module.sink_ids[0]
    others = torch.arange(len(weight)) != sink
    before = start["model.embed_tokens.weight"]
    assert torch.equal(weight[others], before[others]) and not torch.equal(weight[sink], before[sink])
    assert torch.equal(weight[sink], module.rows.parameter[0].detach())
    tied = module.model.get_output_embeddings().weight is weight
    assert rows == {"model.embed_tokens.weight", "model.embed_tokens.sink_rows"} | (
        {"lm_head.weight"} if tied else set()
    )
    if mode == "lora":
        assert moved - rows == {name for name in start if ".lora_" in name}
        assert len(moved - rows) == 2 * 7 * 3  # A and B of seven matrices in three layers
    else:
        assert moved - rows == (norms if mode == "embed" else set())


def test_sink_only_keeps_gradients_and_moments_of_one_row(either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module = make(either, "sink_only")
    fitted(module, prepared_folder, tmp_path)
    optimizer: Any = module.trainer.optimizers[0]
    state = [value for each in optimizer.state.values() for value in each.values()]
    assert sorted(value.numel() for value in state) == [1, 32, 32]  # step, two moments of a row
    assert all(p.grad is None for p in module.parameters() if p is not module.rows.parameter)
    assert [p.numel() for group in optimizer.param_groups for p in group["params"]] == [32]


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps, each storage once, weights apart."""

    def __init__(self, module: SinkModule) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.found: dict[int, int] = {}
        super().__init__(self.keep, lambda x: x)

    def keep(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.found[storage.data_ptr()] = storage.nbytes()
        return x


def test_sink_only_keeps_less_for_the_backward_pass(either: Path) -> None:
    kept = {}
    for mode in ("sink_only", "full"):
        module = make(either, mode)
        module.configure_model()
        counter = Kept(module)
        with counter:
            module.losses(batch(module))[0].backward()
        kept[mode] = sum(counter.found.values())
    assert 0 < kept["sink_only"] < 0.75 * kept["full"]


def batch(module: SinkModule, count: int = 1, documents: bool = False) -> dict[str, Tensor]:
    """Three rows; with `documents`, each of two documents and padding."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 90, (3, 24), generator=generator)
    count = min(count, len(module.sink_ids))
    positions = torch.arange(24).expand(3, -1).clone()
    starts = [0, 10] if documents else [0]
    for start in starts:
        positions[:, start:] = torch.arange(24 - start)
        ids[:, start : start + count] = torch.tensor(module.sink_ids)
    labels = ids.clone()
    labels[torch.isin(ids, torch.tensor(module.sink_ids))] = -100
    if documents:
        ids[:, 20:], labels[:, 20:], positions[:, 20:] = 0, -100, torch.arange(4)
    found = {"input_ids": ids, "labels": labels}
    return found | ({"position_ids": positions} if documents else {})


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_the_rows_gradient_is_that_of_the_whole_model(either: Path, count: int, documents: bool) -> None:
    """The sink alone, with the norms, and beside adapters that add nothing yet: as when everything is trained."""
    found = {}
    for mode in MODES:
        module = make(either, mode, sink=SinkConfig(count=count))
        module.configure_model()
        module.model.double()
        module.losses(batch(module, count, documents))[0].backward()
        whole = module.model.get_input_embeddings().weight.grad
        found[mode] = whole[module.sink_ids] if mode == "full" else module.rows.parameter.grad
    assert float(found["full"].abs().max()) > 1e-3
    for mode in MODES:
        torch.testing.assert_close(found[mode], found["full"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_a_head_that_is_not_plain_gives_the_row_its_gradient_too(
    count: int, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Gemma 2 caps its logits; its head is tied, so that a sink's row is in every logit of the sink."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    fields = {"model_type": "gemma2", "vocab_size": len(tokenizer), "num_key_value_heads": 2, "head_dim": 8,
              "final_logit_softcapping": 2.0, "sliding_window": 512}  # fmt: skip
    tiny_model("llama", **fields).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = {}
    for mode in ("full", "sink_only"):
        module = make(tmp_path, mode, sink=SinkConfig(count=count))
        module.configure_model()
        assert not module.plain_head
        module.losses(batch(module, count))[0].backward()
        whole = module.model.get_input_embeddings().weight.grad
        found[mode] = whole[module.sink_ids] if mode == "full" else module.rows.parameter.grad
    assert float(found["full"].abs().max()) > 1e-3
    torch.testing.assert_close(found["sink_only"], found["full"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3_text"])
def test_an_embedding_that_scales_its_rows(family: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tiny_model("llama", model_type=family, vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=8,
               sliding_window=512).save_pretrained(tmp_path)  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    found = {}
    for mode in ("full", "sink_only"):
        module = make(tmp_path, mode)
        module.configure_model()
        objective = module.losses(batch(module))[0]
        objective.backward()
        whole = module.model.get_input_embeddings().weight.grad
        row = whole[module.sink_ids] if mode == "full" else module.rows.parameter.grad
        found[mode] = (objective.detach(), row)
    torch.testing.assert_close(found["sink_only"], found["full"], rtol=1e-3, atol=1e-4)


def test_frozen_weights_in_bfloat16_leave_the_row_in_float32(
    either: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    for mode in ("sink_only", "lora"):
        module = make(either, mode, dtype="bfloat16")
        recorder = fitted(module, prepared_folder, tmp_path)
        dtypes = {p.requires_grad: p.dtype for p in module.parameters()}
        assert dtypes == {True: torch.float32, False: torch.bfloat16}
        assert min(recorder.losses[1:]) < recorder.losses[0]
        written = module.model.get_input_embeddings().weight[module.sink_ids]
        assert torch.equal(written, module.rows.parameter.detach().bfloat16())


@pytest.mark.parametrize("kind", ["logit", "kv"])
def test_outlets_beside_frozen_weights_in_bfloat16(
    kind: Any, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    module = make(model_folder, "sink_only", dtype="bfloat16", sink=SinkConfig(kind=kind))
    module.configure_model()
    names = [name for name, p in module.model.named_parameters() if p.requires_grad]
    start = {name: module.model.get_parameter(name).detach().clone() for name in names}
    fitted(module, prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "kept"))])
    assert {p.requires_grad: p.dtype for p in module.parameters()} == {True: torch.float32, False: torch.bfloat16}
    assert names and changed(module, start) == set(names)
    kept = dict(load_checkpoint(tmp_path / "kept").model.named_parameters())
    for name in names:
        assert torch.equal(kept[name], module.model.get_parameter(name))


# ---- distillation


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
    from sinktrain.export.export import export

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


# ---- checkpoints


@pytest.mark.parametrize("mode", MODES)
def test_a_run_in_two_parts_is_a_run_in_one(mode: str, either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> SinkModule:
        optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, schedule="wsd", decay_steps=1)
        module = make(either, mode, optimizer=optimizer, distill=0.5)
        fitted(module, prepared_folder, folder, steps, callbacks=[Checkpoints(str(folder / "kept"), every_n_steps=3)])
        return module

    whole = run(tmp_path / "whole", 6)
    # The first half of the same run, cut off: its checkpoint of step 3 was made by a schedule over 6 steps.
    kept = tmp_path / "parts" / "kept"
    kept.mkdir(parents=True)
    shutil.copytree(tmp_path / "whole" / "kept" / "step-000000003", kept / "step-000000003")
    (kept / "owner.txt").write_text((tmp_path / "whole" / "kept" / "owner.txt").read_text())
    parts = run(tmp_path / "parts", 6)
    for (name, expected), (_, found) in zip(
        whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True
    ):
        assert torch.equal(expected, found), name


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_gives_the_plain_model(mode: str, either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module = make(either, mode)
    fitted(module, prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "kept"))])
    module.trainer.save_checkpoint(tmp_path / "single.ckpt")
    ids = batch(module)["input_ids"]
    with torch.no_grad():
        expected = module.model.eval()(input_ids=ids).logits
    for path in (tmp_path / "kept", tmp_path / "single.ckpt"):
        trained = load_checkpoint(path)
        assert trained.tuning == module.tuning
        assert not [name for name, _ in trained.model.named_parameters() if "lora" in name or "sink" in name]
        torch.testing.assert_close(trained.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TuningConfig(mode="embed"), TuningConfig(mode="sink_only")),
        (TuningConfig(), TuningConfig(mode="sink_only")),
        (TuningConfig(mode="lora"), TuningConfig(mode="lora", alpha=1.0)),
        (TuningConfig(), TuningConfig(distill=0.5)),
    ],
)
def test_a_run_does_not_go_on_as_another(
    before: TuningConfig, after: TuningConfig, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    """What was saved would be exported as something that it is not."""

    def run(tuning: TuningConfig, steps: int) -> None:
        module = SinkModule(name=str(model_folder), tuning=tuning, optimizer=OptimizerConfig(warmup_steps=1))
        fitted(module, prepared_folder, tmp_path, steps, callbacks=[Checkpoints(str(tmp_path / "kept"))])

    run(before, 2)
    with pytest.raises(UserError, match=r"model\.tuning: .* differs from the checkpoint's"):
        run(after, 4)


# ---- bad input


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "adapter"}, "mode adapter: unknown; choose one of full, lora, sink_only, embed"),
        ({"distill": 1.5}, "distill 1.5: must lie between 0 and 1"),
        ({"mode": "full", "rank": 4}, "rank: is an option of mode lora"),
        ({"mode": "lora", "rank": 0}, "rank"),
        ({"mode": "lora", "alpha": 0.0}, "alpha 0.0: must be above 0"),
        ({"mode": "lora", "dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_options_out_of_range(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TuningConfig(**fields)


def refused(words: str, **fields: Any) -> None:
    with pytest.raises(UserError, match=words):
        SinkModule(**fields).configure_model()


def test_what_does_not_go_together(model_folder: Path, tokenizer_folder: Path) -> None:
    name, alone = str(model_folder), TuningConfig(mode="sink_only")
    targets = TuningConfig(mode="lora", targets=["q_proj", "query"])
    refused(
        "targets query: is no matrix of the layers of llama; choose from down_proj, gate_proj, k_proj",
        name=name,
        tuning=targets,
    )
    head = TuningConfig(mode="lora", targets=["q_proj", "lm_head"])
    refused("targets lm_head: is no matrix of the layers of llama", name=name, tuning=head)
    refused("leaves nothing to train", name=name, tuning=alone, sink=SinkConfig(kind="none"))
    refused("leaves nothing to train", name=name, tuning=alone, sink=SinkConfig(kind="zero"))
    refused("dtype bfloat16: is for weights that are not trained", name=name, dtype="bfloat16")
    refused("z_loss: does not go with", name=name, tuning=TuningConfig(distill=0.5), z_loss=1e-4)
    fields = {"model_type": "llama", "hidden_size": 32}
    refused("is for a pretrained model", config=fields, tokenizer=str(tokenizer_folder), tuning=alone)


@pytest.mark.parametrize("kind", ["logit", "kv"])
def test_sink_only_of_other_kinds_trains_their_outlets(
    kind: str, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    module = make(model_folder, "sink_only", sink=SinkConfig(kind=kind))  # type: ignore[arg-type]
    module.configure_model()
    start = {name: value.clone() for name, value in module.model.state_dict().items()}
    fitted(module, prepared_folder, tmp_path)
    moved = changed(module, start)
    assert moved and moved == {name for name in start if name.rpartition(".")[2] in ("sinks", "sink_key", "sink_value")}


def test_a_model_with_a_sink_is_gone_on_with(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    """An export is a plain model: its sink is taken as it is, and no second one is added."""
    from sinktrain.export.export import export

    first = make(model_folder, "sink_only")
    fitted(first, prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "kept"))])
    out = export(tmp_path / "kept", tmp_path / "model", dtype="float32")
    second = make(out, "full")
    second.configure_model()
    weights = first.model.get_input_embeddings().weight
    assert second.sink_ids == first.sink_ids and second.front == first.sink_ids and second.known is None
    assert torch.equal(second.model.get_input_embeddings().weight, weights)
    recorder = fitted(second, prepared_folder, tmp_path / "second")
    assert (recorder.batches[0][:, 0] == second.sink_ids[0]).all()
    refused("has <sink> already, and another sink cannot be added", name=str(out), sink=SinkConfig(count=2))
    refused("has <sink> already", name=str(out), sink=SinkConfig(kind="none"))
    refused("is a checkpoint of sinktrain; go on with it by --checkpoints.resume", name=str(tmp_path / "kept"))


def test_a_token_of_the_same_name_that_is_no_sink(model_folder: Path, tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_tokens(["<sink>"])
    tokenizer.save_pretrained(tmp_path)
    refused("holds a token <sink> that is not put in front", name=str(model_folder), tokenizer=str(tmp_path))


@pytest.mark.parametrize("part", ["embedding", "head"])
def test_an_embedding_that_cannot_grow(part: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinktrain.training import build as where

    def quantized(*args: Any, **kwargs: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        table = model.get_input_embeddings() if part == "embedding" else model.get_output_embeddings()
        table.weight = torch.nn.Parameter(table.weight.detach().to(torch.int8), requires_grad=False)
        return model

    monkeypatch.setattr(where, "load_model", quantized)
    kind = "Embedding" if part == "embedding" else "Linear"
    refused(f"its {kind} keeps the vocabulary as int8, quantized, and cannot grow", name=str(model_folder))


def test_adapters_merged_or_kept(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    """PEFT itself reads what is kept."""
    from peft import PeftModel

    from sinktrain.export.export import export

    module = make(model_folder, "lora")
    fitted(module, prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "checkpoints"))])
    ids = batch(module)["input_ids"]
    with torch.no_grad():
        expected = module.model.eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(export(tmp_path / "checkpoints", tmp_path / "merged"))
        kept = export(tmp_path / "checkpoints", tmp_path / "kept", adapters="keep")
        base = AutoModelForCausalLM.from_pretrained(kept)
        without = base(input_ids=ids).logits
        peft = PeftModel.from_pretrained(base, kept / "adapter")
        assert float((without - expected).abs().max()) > 1e-2
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(peft(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert 'PeftModel.from_pretrained(model, "kept/adapter")' in (kept / "README.md").read_text()


def test_adapters_that_are_not_there_cannot_be_kept(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    from sinktrain.export.export import export

    fitted(make(model_folder, "sink_only"), prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "c"))])
    with pytest.raises(UserError, match="--adapters keep: the checkpoint was tuned in mode sink_only"):
        export(tmp_path / "c", tmp_path / "model", adapters="keep")
    assert not (tmp_path / "model").exists()


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


def test_an_embedding_that_is_spread_already(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinktrain.training import build as where

    def spread(*args: Any, **kwargs: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        model.get_input_embeddings().weight.ds_id = 0  # as ZeRO-3 marks what it has spread
        return model

    monkeypatch.setattr(where, "load_model", spread)
    refused("its embedding is spread over devices already and cannot grow by a sink", name=str(model_folder))


@pytest.mark.parametrize("mode", ["sink_only", "lora"])
def test_compilation_and_recomputation_change_no_loss(
    mode: str, either: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="aot_eager", **options))
    torch._dynamo.reset()
    found = []
    for fields in ({}, {"compile": True}, {"gradient_checkpointing": True}):
        module = make(either, mode, distill=0.5, **fields)
        found.append(fitted(module, prepared_folder, tmp_path, accumulate_grad_batches=2).losses[1::2])
    assert len(found[0]) == 4 and len(set(found[0])) == 4
    assert found[1] == pytest.approx(found[0], abs=1e-5) and found[2] == pytest.approx(found[0], abs=1e-5)
