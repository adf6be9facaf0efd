"""The verb `fit`: LightningCLI over `SinkModule` and `SinkDataModule`."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.terminal import say
from sinktrain.data import SinkDataModule
from sinktrain.training.base_quality import BaseQuality
from sinktrain.training.garbage import GarbageCollection
from sinktrain.training.module import SinkModule
from sinktrain.training.progress import ProgressBar
from sinktrain.training.run_record import RecordRun, clean_wandb
from sinktrain.training.saving import Checkpoints
from sinktrain.training.throughput import Throughput
from sinktrain.training.watchdog import Watchdog


class FitCLI(LightningCLI):
    """`sinktrain fit`: options `trainer.*`, `model.*`, `data.*`, `ckpt_path`, each also in a YAML file (--config)."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only `fit`; what it loads is never unpickled, so that there is no option for it."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"}}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors are raised, so that the command line can say them in one sentence."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What every run has, with options of its own."""
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(GarbageCollection, "garbage")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(Watchdog, "watchdog")
        parser.add_lightning_class_args(BaseQuality, "base_quality")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A Trainer that saves with `Checkpoints`, unless trainer.enable_checkpointing is false."""
        own = self._get(self.config_init, "trainer", default={})
        callbacks = own.get("callbacks") or []
        # Lightning adds one of its own if it may
        theirs = any(isinstance(each, Checkpoint) for each in callbacks)
        trainer = super().instantiate_trainer(**kwargs, enable_checkpointing=theirs)
        found: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if own.get("enable_checkpointing") is False:
            found[:] = [each for each in found if not isinstance(each, Checkpoints)]
        in_order(trainer)
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Lightning's would put the checkpoint's hyperparameters over the command line's (its issue 21455)."""

    def before_fit(self) -> None:
        """Refuses what would only fail later, or fail without a sentence."""
        clean_wandb(self.trainer)
        at_least("--trainer.accumulate_grad_batches", self.trainer.accumulate_grad_batches, 1)
        checkpoint = self.config.fit.ckpt_path
        if checkpoint is not None:
            raise UserError(
                f"--ckpt_path {checkpoint}: is Lightning's own, which keeps no random numbers; give "
                "--checkpoints.resume a checkpoint, or the folder that holds some."
            )

    def _run_subcommand(self, subcommand: str) -> None:
        """A run that is refused before its first step leaves no empty logs behind."""
        folders = [Path(folder) for logger in self.trainer.loggers if (folder := logger.log_dir or logger.save_dir)]
        new = [path for folder in folders for path in (folder, *folder.parents) if not path.exists()]
        try:
            super()._run_subcommand(subcommand)
        except UserError:
            if self.trainer.global_step == 0 and self.trainer.is_global_zero:
                _remove(new, folders)
            raise

    def after_fit(self) -> None:
        """Says what was done and where it is."""
        trainer = self.trainer
        if not trainer.is_global_zero:
            return
        losses = [f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in ("train/loss", "val/loss")
                  if name in trainer.callback_metrics]  # fmt: skip
        say(f"trained {trainer.global_step} steps{': ' if losses else ''}{', '.join(losses)}")
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        speed = next(found.tokens_per_second for found in callbacks if isinstance(found, Throughput))
        if speed is not None:
            ranks = "1 process" if trainer.world_size == 1 else f"{trainer.world_size} processes"
            say(f"speed: {speed:,.0f} tokens/s (every position that {ranks} computed)")
        for logger in trainer.loggers:
            say(f"logs: {logger.log_dir or logger.save_dir}")
        for saved in callbacks:
            if isinstance(saved, Checkpoints) and saved.last is not None:
                say(f"checkpoint: {_relative(str(saved.last))}")


def _remove(new: list[Path], folders: list[Path]) -> None:
    """Logs that this run has made, and the folders above them that are empty then: another run may have begun there."""
    for path in folders:
        if path in new:
            shutil.rmtree(path, ignore_errors=True)
    for path in sorted(set(new) - set(folders), key=lambda each: -len(each.parts)):
        with suppress(OSError):
            path.rmdir()


def in_order(trainer: L.Trainer) -> None:
    """Lets checkpoints be called after other callbacks, whose state they keep, and the progress bar last of all.

    What is measured at the very end comes after the checkpoint, so that nothing is lost should it fail.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    last = (ProgressBar, BaseQuality, Checkpoints)
    callbacks.sort(key=lambda callback: tuple(isinstance(callback, kind) for kind in last))


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
            "callbacks": [ProgressBar()] if on_terminal else [],
            # The samples never end and are dealt out by sinktrain: an epoch is the whole run, and validation goes by
            # micro-batches.
            "check_val_every_n_epoch": None,
            "val_check_interval": 50,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        },
        save_config_callback=RecordRun,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={"description": "Trains a model with a sink of any kind."},
    )
