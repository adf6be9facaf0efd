"""What is planned: the options that decide how much memory a process needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sinktrain.base.errors import UserError, at_least
from sinktrain.training.optimizer import OptimizerName

Strategy = Literal["cpu", "gpu", "ddp", "fsdp2", "deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3"]
Precision = Literal["32-true", "bf16-mixed", "bf16-true"]


@dataclass(frozen=True)
class Settings:
    """One way to train; the fields are the options of `sinktrain plan`."""

    strategy: Strategy
    gpus: int
    gpus_per_node: int
    tensor_parallel: int
    offload: bool
    sequence_length: int
    batch_size: int
    global_batch_tokens: int | None
    precision: Precision
    optimizer: OptimizerName
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        for option in ("gpus", "gpus_per_node", "tensor_parallel", "batch_size"):
            at_least(f"--{option}", getattr(self, option), 1)
        at_least("--sequence_length", self.sequence_length, 2)
        if self.strategy in ("cpu", "gpu") and self.gpus > 1:
            raise UserError(f"--gpus {self.gpus}: --strategy {self.strategy} is one device; use ddp, fsdp2 or ZeRO.")
        if self.tensor_parallel > 1 and self.strategy != "fsdp2":
            raise UserError(f"--tensor_parallel {self.tensor_parallel}: only --strategy fsdp2 has it; leave it at 1.")
        if self.gpus % self.tensor_parallel:
            raise UserError(
                f"--tensor_parallel {self.tensor_parallel}: does not divide --gpus {self.gpus}; give a divisor of it."
            )
        if self.offload and self.zero == 0:
            raise UserError(f"--offload: --strategy {self.strategy} has none; use deepspeed-zero1, -zero2 or -zero3.")
        if self.zero and self.optimizer == "muon":
            raise UserError("--optimizer muon: ZeRO flattens the matrices that it needs; use adamw, or fsdp2.")
        if self.global_batch_tokens is not None and self.global_batch_tokens % self.micro_batch_tokens:
            raise UserError(
                f"--global_batch_tokens {self.global_batch_tokens}: is no multiple of a micro-batch of all GPUs "
                f"({self.batch_size} samples x {self.sequence_length} positions x {self.data_parallel} copies = "
                f"{self.micro_batch_tokens}); give a multiple, or change --batch_size."
            )

    @property
    def zero(self) -> int:
        """The stage of ZeRO; 0 without."""
        return int(self.strategy[-1]) if self.strategy.startswith("deepspeed") else 0

    @property
    def data_parallel(self) -> int:
        """How many samples' worth of processes there are: tensor-parallel ones share theirs."""
        return self.gpus // self.tensor_parallel

    @property
    def micro_batch_tokens(self) -> int:
        """Positions of a micro-batch of all processes."""
        return self.batch_size * self.sequence_length * self.data_parallel

    @property
    def accumulated(self) -> int:
        """Micro-batches an optimizer step."""
        return 1 if self.global_batch_tokens is None else self.global_batch_tokens // self.micro_batch_tokens

    @property
    def local(self) -> int:
        """Processes of a node."""
        return min(self.gpus, self.gpus_per_node)


STRATEGIES: tuple[str, ...] = get_args(Strategy)
