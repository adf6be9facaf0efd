"""The LightningModule: any causal language model of transformers, trained with a sink of any kind."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from sinktrain.base.errors import UserError
from sinktrain.base.models import (
    fingerprint,
    load_config,
    load_tokenizer,
    trained_length,
)
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.tokenizer import add_sink_tokens, front_of, has_these_sinks
from sinktrain.streaming.spec import PositionRule
from sinktrain.streaming.train import Banded, band_spec
from sinktrain.training.build import build
from sinktrain.training.checkpoints import check_record, checkpoint_record
from sinktrain.training.chunked import HeadRows, Wanted
from sinktrain.training.guards import GuardConfig
from sinktrain.training.loss import logits_loss, next_token_loss
from sinktrain.training.masks import WithoutMasks, document_mask, is_unmasked
from sinktrain.training.notices import Notices
from sinktrain.training.optimizer import OptimizerConfig, build_optimizer
from sinktrain.training.options import Dtype, check_options
from sinktrain.training.schedule import build_schedule
from sinktrain.training.sharding import shard
from sinktrain.training.step import CONSTANT, GlobalStep
from sinktrain.training.teacher import Teacher
from sinktrain.training.tuning import TuningConfig
from sinktrain.training.zero import UndecayedParts, engine, fragments, write_back

Look = TypeVar("Look")


class SinkModule(L.LightningModule):
    """Fine-tunes a pretrained causal language model, or trains one from scratch, with a sink.

    Args:
        name: the pretrained model: a folder, a `.gguf` file, `package:NAME` for a model inside an installed Python
            package, or a name on the Hugging Face hub.
        config: for training from scratch instead: the fields of a transformers config, with `model_type`.
        tokenizer: the tokenizer, if it is not the model's own; needed with `config`.
        sink: how attention gets its outlet.
        tuning: what of a pretrained model is trained, and whether it is held to what it said before.
        dtype: of a pretrained model's weights; bfloat16 for those that stay as they are (modes lora and sink_only),
            beside which what is trained is in float32.
        optimizer: AdamW or Muon, and the learning rate over the run.
        guard: which optimizer steps are left out, and when to stop.
        seed: of the initial weights, with `config`, and of adapters.
        z_loss: how much of log(Z)^2 is added to the loss of a token, with Z the sum of the exponentials of its logits
            (PaLM, arXiv 2204.02311, section 5, uses 1e-4); 0 for none. The logged losses are without it.
        gradient_checkpointing: recompute activations in the backward pass, for less memory.
        compile: fuse the inner model and the loss with `torch.compile`: faster steps after a minute of compilation.
        band: train with what a streaming cache `x+y` lets the model see instead of full attention, at a cost that grows
            with the length of a sample and not with its square; leave it out for full attention.
        band_rule: the distance that a sink is seen at with `band`: `cache`, its distance in the cache, or `original`,
            that in the text.
        revision: of a hub model.
        trust_remote_code: run code that comes with a hub model; off unless you trust its author.
    """

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        sink: SinkConfig = SinkConfig(),  # noqa: B008 (it is frozen)
        tuning: TuningConfig = TuningConfig(),  # noqa: B008
        dtype: Dtype = "float32",
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        guard: GuardConfig = GuardConfig(),  # noqa: B008
        seed: int = 0,
        z_loss: float = 0.0,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        band: str | None = None,
        band_rule: PositionRule = "cache",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        check_options(name, config, tokenizer, sink, tuning, dtype, z_loss)
        self.name, self.new_config, self.sink, self.optimizer, self.guard = name, config, sink, optimizer, guard
        self.tuning, self.dtype_of_weights = tuning, dtype
        self.seed, self.z_loss = seed, z_loss
        self.gradient_checkpointing, self.compiled = gradient_checkpointing, compile
        self.hub: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
        if revision is not None:
            self.hub["revision"] = revision
        option = "model.name" if tokenizer is None else "model.tokenizer"
        self.tokenizer = load_tokenizer(str(tokenizer or name), option, **self.hub)
        self.tokenizer_fingerprint = fingerprint(self.tokenizer)
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self.front = front_of(self.tokenizer)
        """What the model had in front of a text before it got its sink."""
        self.had_sinks = has_these_sinks(self.tokenizer, sink)
        self.sink_ids = self.front if self.had_sinks else add_sink_tokens(self.tokenizer, sink)
        fields = load_config(name, **self.hub) if name else SimpleNamespace(**(config or {}))
        self.trained_length = self.longest_sample = trained_length(fields)
        self.band = None if band is None else band_spec(band, len(self.sink_ids), self.trained_length, band_rule)
        if self.band is not None and band_rule == "cache":
            self.longest_sample = None  # no distance in it is longer than the cache
        self.band_rule: PositionRule = band_rule
        self.banded: Banded | None = None
        self.model: Any = None
        self.plain_head = False  # whether logits are the head applied to the last hidden states
        self.rows: Any = None  # the sinks' rows, where they are trained by themselves
        self.teacher: Teacher | None = None
        self.unmasked: str | None = None  # the attention to train with, where it is not the model's own
        self._step: Any = None  # a GlobalStep while training
        self.notices = Notices()
        self._guard_state: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Makes the model under DeepSpeed, which spreads a whole one over the ranks.

        In `configure_model` its stage 3 would take each weight away before transformers has filled it.
        """
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            self._build()

    def configure_model(self) -> None:
        """Makes the model, and under FSDP2 spreads it; Lightning calls this once it knows the devices."""
        self._build()
        mesh = self.device_mesh
        if mesh is not None and not isinstance(self, FSDPModule):
            shard(self, mesh, str(self.trainer.precision))

    def _build(self) -> None:
        """Makes the model, if it is not made yet."""
        if self.model is None:
            build(self)

    @property
    def known(self) -> int | None:
        """How many rows of the vocabulary the model had before it got its sink; None where it has had it."""
        return None if self.had_sinks or not self.sink_ids else min(self.sink_ids)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of token ids (B, T) that begin with the sinks; documents by positions that restart."""
        logits: Tensor = self.model(**self._inputs(self.model, input_ids, position_ids)).logits
        return logits

    def _inputs(
        self, model: Any, input_ids: Tensor, position_ids: Tensor | None, dense: bool = False
    ) -> dict[str, Any]:
        if self.banded is not None and not dense:
            return self.banded.inputs(input_ids, position_ids)
        # transformers tells documents apart by positions that restart only without a cache and a mask
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
        if position_ids is not None and is_unmasked(model):
            inputs["attention_mask"] = document_mask(model, position_ids)
        return inputs

    def _run(self, model: Any, input_ids: Tensor, position_ids: Tensor | None, dense: bool = False) -> Tensor:
        """The last hidden states (B, T, D) of this model or its teacher; logits (B, T, V), where they are more.

        A teacher is `dense`: it sees all of a sample, also where the model is trained with a band.
        """
        inputs = self._inputs(model, input_ids, position_ids, dense)
        found: Tensor = model.base_model(**inputs).last_hidden_state if self.plain_head else model(**inputs).logits
        return found

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Summed over a batch: what is trained on, the NLL, and the number of tokens that are predicted.

        The last sink predicts the first text token; nothing predicts a sink (labels of -100).
        """
        ids, positions, labels = batch["input_ids"], batch.get("position_ids"), batch["labels"]
        wanted = Wanted(self.z_loss) if self.teacher is None else self.teacher.wanted(ids, positions, self._run)
        answer = self._run(self.model, ids, positions)
        if not self.plain_head:
            return logits_loss(answer, labels, wanted=wanted)
        own = HeadRows(self.rows.ids, self.rows.parameter) if self.rows is not None and self.rows.tied else None
        head = self.model.get_output_embeddings()
        return next_token_loss(answer, head, labels, compiled=self.compiled, wanted=wanted, own_rows=own)

    def looked_at(self, look: Callable[[], Look]) -> Look:
        """What `look` finds, which runs the model itself: under FSDP2, what is outside of its layers is whole then."""
        return look()

    def divergence(self, objective: Tensor, nll: Tensor) -> Tensor | None:
        """The KL divergence from the teacher in `losses`, summed; None without one."""
        share = self.tuning.distill
        return (objective.detach() - (1 - share) * nll) / share if share else None

    def configure_callbacks(self) -> list[L.Callback]:
        """Lets the model attend without masks of transformers, which make the host wait, while it trains."""
        return [WithoutMasks()]

    def on_train_start(self) -> None:
        """Starts the first optimizer step, where the checkpoint left it."""
        self._step = GlobalStep(self.trainer, self.guard, self.device, self.notices)
        if engine(self.trainer) is not None:
            self._keep_rows_undecayed()
        if self._guard_state is not None:
            self._step.guard.load_state_dict(self._guard_state)

    def _keep_rows_undecayed(self) -> None:
        """DeepSpeed's optimizer steps on flat tensors, in which the sinks' rows have places of their own."""
        zero: Any = self.trainer.optimizers[0]
        weight = self.model.get_input_embeddings().weight
        if zero.optimizer.undecayed is not None:
            parts = list(fragments(zero, {"embedding": weight}))
            width = int(getattr(weight, "ds_shape", weight.shape)[1])
            zero.optimizer.undecayed = UndecayedParts(parts, self.sink_ids, width)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Remembers which samples the step is made of, to name them should it go wrong."""
        self._step.guard.watch(batch.get("samples"))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The micro-batch's summed loss over a constant; see `GlobalStep`."""
        objective, nll, tokens = self.losses(batch)
        self._step.add(nll, tokens, self.divergence(objective, nll))
        return objective / CONSTANT

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns the gradient into that of the token-weighted mean over the global batch, and judges it."""
        self._step.finish(optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, and logs what the step was."""
        super().optimizer_step(*args, **kwargs)
        if self.rows is not None:
            self.rows.write_back() if engine(self.trainer) is None else write_back(self.rows)
        for name, value in self._step.figures(self.trainer.optimizers[0]).items():
            self.log(name, value)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm that was logged; Lightning's clipping refuses fused optimizers (its issue 21435)."""
        if gradient_clip_algorithm in (None, "norm"):
            if gradient_clip_val:
                self._step.clip(optimizer, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_end(self) -> None:
        """Tells of the last steps, should any have been left out."""
        self._step.tell()

    def on_validation_epoch_start(self) -> None:
        """Starts the sums of a validation."""
        # Sums over millions of tokens want float64, which Apple's devices lack.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._validation = torch.zeros(3, device=self.device, dtype=dtype)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds a batch to the sums."""
        objective, nll, tokens = self.losses(batch)
        divergence = self.divergence(objective, nll)
        self._validation += torch.stack((nll, tokens, nll.new_zeros(()) if divergence is None else divergence))

    def on_validation_epoch_end(self) -> None:
        """Logs the mean NLL over every predicted token of every rank."""
        if self.trainer.world_size > 1:
            self._validation = self.trainer.strategy.reduce(self._validation, reduce_op="sum")
        nll, tokens, divergence = self._validation.unbind()
        self.log("val/loss", (nll / tokens.clamp(min=1)).float(), prog_bar=True)
        if self.teacher is not None:
            self.log("val/kl", (divergence / tokens.clamp(min=1)).float())

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule over `trainer.max_steps`, which it needs to know."""
        if self.optimizer.name == "muon" and isinstance(self.trainer.strategy, DeepSpeedStrategy):
            raise UserError("optimizer.name muon: needs whole matrices, which DeepSpeed flattens; use FSDP2, or adamw.")
        optimizer = build_optimizer(self.model, self.optimizer, self.sink_ids)
        schedule = build_schedule(optimizer, self.optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what makes the checkpoint whole without the base model: config, tokenizer, sink."""
        checkpoint["sinktrain"] = checkpoint_record(self.model, self.tokenizer, self.sink, self.tuning)
        if self._step is not None:
            checkpoint["sinktrain_guard"] = self._step.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another sink, or of which something else was trained."""
        check_record(checkpoint, self.sink, self.tuning)
        self._guard_state = checkpoint.get("sinktrain_guard")
