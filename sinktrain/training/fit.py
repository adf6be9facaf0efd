"""The verb `fit`: LightningCLI over `SinkModule` and `SinkDataModule`."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from sinktrain.base.terminal import say
from sinktrain.data import SinkDataModule
from sinktrain.training.module import SinkModule


class FitCLI(LightningCLI):
    """`sinktrain fit`: options `trainer.*`, `model.*`, `data.*`, `ckpt_path`, each also in a YAML file (--config)."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only `fit`."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors are raised, so that the command line can say them in one sentence."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def after_fit(self) -> None:
        """Says what was done and where it is."""
        trainer = self.trainer
        losses = [f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in ("train/loss", "val/loss")
                  if name in trainer.callback_metrics]  # fmt: skip
        say(f"trained {trainer.global_step} steps: {', '.join(losses)}")
        for logger in trainer.loggers:
            say(f"logs: {logger.log_dir or logger.save_dir}")
        checkpoint = getattr(trainer.checkpoint_callback, "last_model_path", "")
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if checkpoint or best:
            say(f"checkpoint: {_relative(checkpoint or best)}")


_NOISE = (
    ".*LightningCLI's args parameter.*",  # we do not read sys.argv behind its back
    ".*does not have many workers.*",  # samples are cut from a memory map, which needs none
    ".*exists and is not empty.*",  # checkpoints of a resumed run
    ".*treespec, LeafSpec.*",
)


def _relative(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def fit(arguments: list[str]) -> None:
    """Trains a model; `arguments` are those after `sinktrain fit`."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    on_terminal = sys.stderr.isatty()
    FitCLI(
        SinkModule,
        SinkDataModule,
        args=["fit", *arguments],
        trainer_defaults={
            "enable_progress_bar": on_terminal,
            "enable_model_summary": False,
            "callbacks": [RichProgressBar()] if on_terminal else [],
        },
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={"description": "Trains a model with a sink token in front of every sample."},
    )
