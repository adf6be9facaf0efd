"""How the work is spread over devices: DDP, FSDP2 and DeepSpeed, as `configs/trainer/` name them.

All of them run on CPUs with gloo too, which is where they are tested.
"""

from __future__ import annotations

import os
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from torch.nn.parallel import DistributedDataParallel

from sinktrain.base.errors import UserError, at_least


class DDP(DDPStrategy):
    """The whole model on every rank (torch's `DistributedDataParallel`).

    A model's buffers are constants, so they are not sent to all ranks before every pass; and gradients lie in the
    buckets that are exchanged.

    Args:
        timeout: seconds after which a rank that waits for another in vain gives up; the watchdog is much quicker.
    """

    def __init__(self, timeout: float = 1800.0) -> None:
        known = signature(DistributedDataParallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # from 2.13 on
        options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
        super().__init__(timeout=timedelta(seconds=timeout), **options)


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer spread over all ranks, layer by layer (torch's `fully_shard`).

    Args:
        tensor_parallel: over how many ranks each matrix of a layer is split besides; they see the same samples. The
            model must have a plan for it, and its heads must be a multiple of it.
        timeout: seconds after which a rank that waits for another in vain gives up; the watchdog is much quicker.
    """

    def __init__(self, tensor_parallel: int = 1, timeout: float = 1800.0) -> None:
        at_least("trainer.strategy.tensor_parallel", tensor_parallel, 1)
        super().__init__(tensor_parallel_size=tensor_parallel, timeout=timedelta(seconds=timeout))

    def setup_environment(self) -> None:
        """Both sizes are set once the number of ranks is known.

        Raises:
            UserError: the ranks are no multiple of `tensor_parallel`.
        """
        ranks, tensor = self.num_nodes * self.num_processes, int(self._tensor_parallel_size)
        if ranks % tensor:
            raise UserError(
                f"trainer.strategy.tensor_parallel {tensor}: does not divide the {ranks} processes; choose a divisor."
            )
        self._data_parallel_size = ranks // tensor
        super().setup_environment()


class DeepSpeed(DeepSpeedStrategy):
    """ZeRO of DeepSpeed (arXiv 1910.02054), on GPUs as Lightning does it, and on CPUs with gloo.

    Gradients are put right, judged and clipped by sinktrain, as with every other strategy, not by DeepSpeed.

    Args:
        stage: 1 spreads the optimizer over the ranks, 2 the gradients too, 3 the weights too.
        offload_optimizer: keep the optimizer, and do its steps, in the host's memory.
        offload_parameters: keep the weights there too; stage 3 only.
        overlap_comm: exchange gradients while the backward pass goes on; GPUs only.
    """

    def __init__(
        self,
        stage: int = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        overlap_comm: bool = True,
    ) -> None:
        if stage not in (1, 2, 3):
            raise UserError(f"trainer.strategy.stage {stage}: unknown; choose 1, 2 or 3.")
        if offload_parameters and stage != 3:
            raise UserError(f"trainer.strategy.offload_parameters: needs stage 3; stage {stage} keeps them whole.")
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            overlap_comm = False
        _check_installed()
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            overlap_comm=overlap_comm,
            logging_batch_size_per_gpu=1,  # for messages of DeepSpeed alone, which would ask the loader
        )
        assert isinstance(self.config, dict)
        self.config["gradient_clipping"] = 0.0
        self.config["zero_force_ds_cpu_optimizer"] = False  # ours steps on the host as well

    @property
    def _on_cpu(self) -> bool:
        return not isinstance(self.accelerator, CUDAAccelerator)

    def setup_environment(self) -> None:
        """Lightning's refuses a CPU."""
        if self._on_cpu:
            _without_compiler()
            super(DeepSpeedStrategy, self).setup_environment()
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        """Lightning's wants the number of a CUDA device."""
        if self._on_cpu:
            reset_seed()
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        else:
            super().setup_distributed()

    @property
    def root_device(self) -> torch.device:
        """DeepSpeed wants a number, on a CPU too."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("deepspeed") is None:
        raise UserError("trainer.strategy DeepSpeed: needs deepspeed; run `pip install deepspeed`, or use FSDP2.")


def _without_compiler() -> None:
    """Lets ranks on a CPU meet through gloo alone; else DeepSpeed compiles a C++ extension at its first start."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
