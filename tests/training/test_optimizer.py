"""The one optimizer object: what it steps like, what it decays, what it keeps, and what it leaves out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import GrabGradients, Recorder, StopAt, make, trainer
from torch import Tensor, nn

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.training import OptimizerConfig
from sinktrain.training.guarded import GuardedOptimizer, UndecayedRows
from sinktrain.training.optimizer import build_optimizer

SINK = 90


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def with_sinks(family: str = "llama", **fields: Any) -> nn.Module:
    """A tiny model whose attention has sinks of every kind as parameters."""
    model = tiny_model(family, **fields)
    for module in list(model.modules()):
        if type(module).__name__.endswith("Attention"):
            module.sinks = nn.Parameter(torch.ones(4))
            module.sink_key = nn.Parameter(torch.ones(2, 8))
            module.sink_value = nn.Parameter(torch.ones(2, 8))
    return model


def decays(model: nn.Module, config: OptimizerConfig) -> dict[str, tuple[str, float]]:
    """By name, the algorithm and the decay of every parameter; each must be in exactly one group."""
    groups = build_optimizer(model, config).param_groups
    found = [(id(p), (group["algorithm"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len({key for key, _ in found}) == len(list(model.parameters()))
    return {name: dict(found)[id(parameter)] for name, parameter in model.named_parameters()}


def kind(name: str) -> str:
    last = name.rpartition(".")[2]
    if last in ("sinks", "sink_key", "sink_value"):
        return "sinks"
    if last == "bias":
        return "biases"
    return "norms" if "norm" in name else "matrices"


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("option", [None, "norms", "biases", "sinks"])
def test_what_is_decayed_and_by_whom(name: Any, option: str | None) -> None:
    model = with_sinks("gpt_neox")
    found = decays(model, OptimizerConfig(name=name, **({f"decay_{option}": True} if option else {})))
    assert {kind(name) for name in found} == {"sinks", "biases", "norms", "matrices"}
    for each, (algorithm, decay) in found.items():
        assert decay == (0.1 if kind(each) in ("matrices", option) else 0.0), each
        table = "embed" in each or "lm_head" in each
        assert algorithm == ("muon" if name == "muon" and kind(each) == "matrices" and not table else "adamw"), each


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("decay_sinks", [True, False])
def test_sink_rows_against_adamw_by_hand(tied: bool, decay_sinks: bool) -> None:
    """Loshchilov and Hutter, ICLR 2019, algorithm 2, in float64; the head's row is the embedding's where it is tied."""
    model = tiny_model("llama", dtype=torch.float64, tie_word_embeddings=tied)
    config = OptimizerConfig(learning_rate=0.05, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6, decay_sinks=decay_sinks)
    optimizer = build_optimizer(model, config, [SINK, 3])
    named = dict(model.named_parameters())
    assert ("lm_head.weight" in named) is not tied
    weights = {name: p.detach().clone() for name, p in named.items()}
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step in range(1, 8):
        gradients(model, step)
        optimizer.step()
        for name, weight in weights.items():
            gradient = named[name].grad
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            update = (first[name] / (1 - 0.8**step)) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            decay = torch.full_like(weight, 0.3 if weight.dim() > 1 else 0.0)
            if "embed" in name and not decay_sinks:
                decay[[SINK, 3]] = 0.0
            weights[name] = weight - 0.05 * decay * weight - 0.05 * update
    for name, weight in weights.items():
        torch.testing.assert_close(named[name].detach(), weight, rtol=1e-12, atol=1e-13, msg=name)


def two_optimizers(model: nn.Module) -> Callable[[], None]:
    """torch's own Muon and AdamW, stepped one after the other."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and kind(n) == "matrices" and "layers" in n]
    tables = [p for n, p in model.named_parameters() if "embed" in n or "lm_head" in n]
    others = [p for p in model.parameters() if all(p is not q for q in (*matrices, *tables))]
    assert matrices and tables and others
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": tables, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


CONFIGS = {
    "adamw": OptimizerConfig(learning_rate=1e-2),
    "muon": OptimizerConfig(name="muon", learning_rate=1e-2, momentum=0.9),
}


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    return len(pairs) > 10 and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("guarded", [False, True])
def test_muon_is_two_torch_optimizers_bit_for_bit(guarded: bool) -> None:
    one, two = with_sinks(), with_sinks()
    optimizer, step = build_optimizer(one, CONFIGS["muon"]), two_optimizers(two)
    if guarded:
        optimizer.skip = torch.tensor(0.0)
    for number in range(5):
        gradients(one, number)
        gradients(two, number)
        optimizer.step()
        step()
        assert same(one, two)


def tensors(optimizer: GuardedOptimizer) -> Iterator[Tensor]:
    for values in optimizer.state_dict()["state"].values():
        yield from values.values()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_goes_on_from_its_state_bit_for_bit(name: str) -> None:
    whole, cut = with_sinks(), with_sinks()
    optimizer, first = (build_optimizer(model, CONFIGS[name], [SINK]) for model in (whole, cut))
    for step in range(3):
        for model, each in ((whole, optimizer), (cut, first)):
            gradients(model, step)
            each.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = build_optimizer(cut, CONFIGS[name], [SINK])
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [group["algorithm"] for group in second.param_groups] == [
        "adamw",
        "adamw",
        *(["muon"] if name == "muon" else []),
    ]
    for step in range(3, 6):
        for model, each in ((whole, optimizer), (cut, second)):
            gradients(model, step)
            each.step()
    assert same(whole, cut)
    assert all(torch.equal(a, b) for a, b in zip(tensors(optimizer), tensors(second), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.0])
@settings(max_examples=8, deadline=None)
@given(left_out=st.sets(st.integers(0, 4), min_size=1, max_size=4))
def test_a_step_left_out_leaves_no_trace(name: str, value: float, left_out: set[int]) -> None:
    """Weights, moments and counts are those of a run without these steps, whatever the gradients were."""
    run, reference = with_sinks(), with_sinks()
    one, two = (build_optimizer(model, CONFIGS[name], [SINK]) for model in (run, reference))
    for step in range(5):
        one.skip = torch.tensor(float(step in left_out))
        gradients(run, step)
        if step in left_out:
            for parameter in run.parameters():
                parameter.grad.flatten()[0] = value
        one.step()
        if step not in left_out:
            gradients(reference, step)
            two.step()
        assert same(run, reference)
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


def test_the_closure_may_decide() -> None:
    """As in Lightning, where the gradients and the verdict come from the closure."""
    model = with_sinks()
    optimizer = build_optimizer(model, CONFIGS["muon"], [SINK])
    before = [p.detach().clone() for p in model.parameters()]

    def closure() -> str:
        gradients(model, 0)
        optimizer.skip = torch.tensor(1.0)
        return "done"

    assert optimizer.step(closure) == "done"
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_only_trained_parameters(model_folder: Path) -> None:
    module = make(model_folder)
    module.configure_model()
    module.model.requires_grad_(False)
    trained = module.model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    optimizer = build_optimizer(module.model, OptimizerConfig(), module.sink_ids)
    assert [p for group in optimizer.param_groups for p in group["params"]] == [trained]
    assert optimizer.undecayed is None


def test_a_muon_run_goes_down_and_resumes_bit_for_bit(
    model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    def run(stop: int | None = None, ckpt: str | None = None) -> tuple[nn.Module, Recorder]:
        config = OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=1, schedule="wsd", decay_steps=3)
        module, recorder = make(model_folder, optimizer=config), Recorder()
        fit = trainer(tmp_path, 8, callbacks=[recorder, *([] if stop is None else [StopAt(stop)])], gradient_clip_val=1)
        fit.fit(module, SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4), ckpt_path=ckpt)
        if stop is not None:
            fit.save_checkpoint(tmp_path / "mid.ckpt")
        return module, recorder

    whole, losses = run()
    run(stop=5)
    resumed, rest = run(ckpt=str(tmp_path / "mid.ckpt"))
    assert same(whole, resumed)
    assert len(rest.losses) == 3 and rest.losses == losses.losses[5:]
    assert losses.losses[-1] < losses.losses[0] - 0.5


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_by_norm_with_the_fused_optimizer(
    precision: Any, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    """Lightning's own clipping raises here (its issue 21435); the result is that of torch's clip_grad_norm_."""
    data, config = {"sequence_length": 32, "batch_size": 2}, OptimizerConfig(warmup_steps=0)
    found, logged = [], []
    for clip in (None, 0.25):
        grab = GrabGradients()
        fit = trainer(tmp_path, 1, precision=precision, gradient_clip_val=clip, callbacks=[grab])
        fit.fit(make(model_folder, optimizer=config), SinkDataModule(str(prepared_folder), **data))
        found.append(grab.gradients)
        logged.append(float(fit.callback_metrics["train/grad_norm"]))
    whole = [nn.Parameter(torch.zeros_like(g)) for g in found[0].values()]
    for parameter, gradient in zip(whole, found[0].values(), strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(whole, 0.25)
    assert logged == pytest.approx([float(norm)] * 2, rel=1e-6) and float(norm) > 0.25
    for parameter, gradient in zip(whole, found[1].values(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=1e-9)


def test_clipping_by_value(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    grab = GrabGradients()
    fit = trainer(tmp_path, 1, gradient_clip_val=1e-4, gradient_clip_algorithm="value", callbacks=[grab])
    fit.fit(
        make(model_folder, optimizer=OptimizerConfig(warmup_steps=0)),
        SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2),
    )
    largest = max(float(gradient.abs().max()) for gradient in grab.gradients.values())
    assert largest == pytest.approx(1e-4)


@pytest.mark.parametrize(("fields", "words"), [
    ({"name": "sgd"}, r"optimizer\.name sgd: unknown"), ({"schedule": "step"}, r"optimizer\.schedule step: unknown"),
    ({"learning_rate": 0}, r"optimizer\.learning_rate"), ({"weight_decay": -1}, r"optimizer\.weight_decay"),
    ({"betas": (0.9, 1.0)}, r"optimizer\.betas"), ({"momentum": 2}, r"optimizer\.momentum"),
    ({"decay_fraction": 1.5}, r"optimizer\.decay_fraction"),
    ({"decay_steps": 0}, r"optimizer\.decay_steps")])  # fmt: skip
def test_bad_options_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        OptimizerConfig(**fields)


def test_a_torch_without_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"optimizer\.name muon: torch .* has none"):
        OptimizerConfig(name="muon")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_host_never_waits_for_the_device(name: str) -> None:
    model = with_sinks().cuda()
    optimizer = build_optimizer(model, CONFIGS[name], [SINK])
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    verdicts = [torch.tensor(value, device="cuda") for value in (1.0, 0.0)]
    try:
        torch.cuda.set_sync_debug_mode("error")
        optimizer.skip = verdicts[0]
        optimizer.step()
        kept = [a.eq(b).all() for a, b in zip(before, model.parameters(), strict=True)]
        optimizer.skip = verdicts[1]
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(kept) and not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_rows_of_a_weight_without_a_gradient_stay() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    rows = UndecayedRows(weight, [1])
    rows.give_back(rows.before(), [{"params": [weight], "lr": 1.0, "weight_decay": 1.0}], None)
    assert torch.equal(weight, torch.ones(4, 2))
