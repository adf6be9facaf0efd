"""A training run that saves and can be stopped, for tests of resuming; started alone or by torchrun; prints nothing.

    python resume_run.py OPTIONS.json

A model with dropout, so that random numbers matter; 24 samples, so that epochs of the text pass quickly. Adds a line of
JSON for every step to `OUT/steps-RANK.jsonl`: loss, samples, and what is left of the random numbers. At the end of the
run it writes `OUT/final-RANK.json`, a checksum of weights, optimizer and random state.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import lightning as L  # noqa: E402
import torch  # noqa: E402
from strategy_run import strategy  # noqa: E402

from sinktrain.checkpoints import disk  # noqa: E402
from sinktrain.cli import main as command_line  # noqa: E402, F401
from sinktrain.data import SinkDataModule  # noqa: E402
from sinktrain.sinks import SinkConfig  # noqa: E402
from sinktrain.training import Checkpoints, OptimizerConfig, SinkModule  # noqa: E402
from sinktrain.training.notices import Notices  # noqa: E402
from sinktrain.training.slots import slots  # noqa: E402
from sinktrain.training.watchdog import Watchdog  # noqa: E402

torch.set_num_threads(1)
CONFIG = {"model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip


class Diary(L.Callback):
    """Writes down every step; kills or stops the process where the options say so."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.samples, self.step = options, list[int](), 0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.step = trainer.global_step
        path = Path(self.options["out"], f"steps-{trainer.global_rank}.jsonl")
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, index: int) -> None:
        self.samples += batch["samples"].tolist()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        entry = {"step": self.step, "loss": trainer.callback_metrics["train/loss"].item().hex(),
                 "samples": self.samples, "random": hashlib.md5(torch.get_rng_state().numpy()).hexdigest()}  # fmt: skip
        os.write(self.file, json.dumps(entry).encode() + b"\n")
        self.samples = []
        if self.step == 3 and "owner" in self.options:  # another start of the run
            Path(self.options["out"], "checkpoints", "owner.txt").write_text(self.options["owner"])
        if self.step == self.options.get("stop"):
            trainer.should_stop = True
        time.sleep(self.options.get("pause", 0.0))


def fingerprint(module: Any) -> str:
    """Of weights and optimizer, as this rank holds them, and of its random numbers."""
    digest = hashlib.sha256(torch.get_rng_state().numpy())
    for slot in slots(module):
        digest.update(slot.name.encode() + slot.values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hang() -> None:
    """Never returns."""
    time.sleep(1000)


class Hang(L.Callback):
    """Hangs or fails in a step of a rank: `[place, step, rank]`."""

    def __init__(self, place: str, step: int, rank: int) -> None:
        self.place, self.step, self.rank = place, step, rank

    def _reach(self, trainer: L.Trainer, place: str) -> None:
        if (place, trainer.global_step, trainer.global_rank) == (self.place, self.step, self.rank):
            hang()
        if self.place == "error" and (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            raise ZeroDivisionError("on purpose")

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._reach(trainer, "forward")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._reach(trainer, "data")


class CountCollectives(L.Callback):
    """Counts what Python exchanges between ranks in steps 2 to 5, before the first validation."""

    NAMES = ("broadcast", "all_reduce", "all_gather", "barrier", "broadcast_object_list", "all_gather_object")

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            self.own = {name: getattr(torch.distributed, name) for name in self.NAMES}
            for name, function in self.own.items():
                setattr(torch.distributed, name, self._counting(name, function))
        elif trainer.global_step == 5:
            for name, function in self.own.items():
                setattr(torch.distributed, name, function)
            Path(trainer.default_root_dir, "collectives.json").write_text(json.dumps(self.counted))

    def _counting(self, name: str, function: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.counted[name] = self.counted.get(name, 0) + 1
            return function(*args, **kwargs)

        return counting


class Saver(Checkpoints):
    """One whose clock is the count of steps, where the options say after which it is time."""

    due: list[int] | None = None

    def _is_due(self, trainer: L.Trainer) -> bool:
        return super()._is_due(trainer) if self.due is None else trainer.global_step in self.due


class Event:
    """Of a GPU that is behind: what was sums of a step is there a step later."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def arrived_late(notices: Notices, sums: torch.Tensor) -> None:
    """As `Notices.arrived` on a GPU."""
    notices._on_the_way.append((sums.clone(), Event()))


class Validations(L.Callback):
    """Notes at which steps there was a validation, and what came out."""

    def __init__(self) -> None:
        self.found: list[list[Any]] = []

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.found.append([trainer.global_step, trainer.callback_metrics["val/loss"].item().hex()])


class Finish(L.Callback):
    """Writes down what the run came to."""

    def __init__(self, validations: Validations) -> None:
        self.validations = validations

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            print("validations", self.validations.found)
            found = {"fingerprint": fingerprint(module), "validation": self.validations.found[-1:]}
            path = Path(trainer.default_root_dir, f"final-{trainer.global_rank}.json")
            path.write_text(json.dumps(found))


def fail_at(options: dict[str, Any]) -> None:
    """Kills this process before the file operation of a number that the options name, on the rank that they name."""
    counted = [0]

    def operation(name: str, path: Path) -> None:
        if int(os.environ.get("RANK", 0)) == options.get("kill_rank", 0):
            counted[0] += 1
            if counted[0] == options["kill_operation"]:
                os.kill(os.getpid(), 9)

    disk.operation = operation


def main(options: dict[str, Any]) -> None:
    """Trains as the options say."""
    if options.get("late"):
        Notices.arrived = arrived_late  # type: ignore[method-assign]
    if "kill_operation" in options:
        fail_at(options)
    L.seed_everything(1 + int(os.environ.get("RANK", 0)), verbose=False)  # ranks that draw different numbers
    accumulate = options.get("accumulate", 1)
    saving = {"folder": str(Path(options["out"], "checkpoints")), "every_n_steps": options.get("every"),
              "every_minutes": 0, **options.get("checkpoints", {})}  # fmt: skip
    validations = Validations()
    saver = Saver(**saving)
    saver.due = options.get("due")
    callbacks = [Diary(options), saver, validations, Finish(validations)]
    if options.get("count"):
        callbacks.append(CountCollectives())
    if "watchdog" in options:
        callbacks.insert(0, Watchdog(**options["watchdog"]))
    if "hang" in options:
        callbacks.append(Hang(*options["hang"]))
    trainer = L.Trainer(
        accelerator="cpu", devices=options["ranks"], strategy=strategy(options.get("strategy", "auto")),
        max_steps=options["steps"], accumulate_grad_batches=accumulate, gradient_clip_val=0.5, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
        use_distributed_sampler=False, default_root_dir=options["out"], check_val_every_n_epoch=None,
        val_check_interval=5 * accumulate, callbacks=callbacks,
    )  # fmt: skip
    config = {**CONFIG, "hidden_dropout": options.get("dropout", 0.1)}
    module = SinkModule(config=config, tokenizer=options["model"], sink=SinkConfig(**options.get("sink", {})),
                        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2))  # fmt: skip
    data = SinkDataModule(options["data"], sequence_length=options.get("length", 32), batch_size=options["batch"],
                          num_workers=options.get("workers", 0), validation_batches=2,
                          check_files=options.get("check_files", False))  # fmt: skip
    trainer.fit(module, data)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
