"""Stands in for `sinktrain fit` under a launcher: python stand_in.py fit FOLDER [STEPS [SECONDS OF A SAVE]] ...

The ranks of a run share FOLDER. One that gets SIGTERM, SIGINT or SIGUSR1 says so there; all of them then save and
end with 128 + signal. A run goes on from what was saved. Each rank writes its process id, so that a test can find it.
"""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[2])
numbers = [float(word) for word in itertools.takewhile(lambda word: not word.startswith("--"), sys.argv[3:5])]
steps, save_seconds = [*numbers, *(1000, 0)[len(numbers) :]]
rank, attempt = os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
stop = folder / f"stop-{attempt}"


def ask_to_stop(number: int, frame: object) -> None:
    stop.write_text(str(number))


for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, ask_to_stop)
(folder / f"pid-{rank}-{attempt}").write_text(str(os.getpid()))
saved = folder / f"saved-{rank}"
start = int(saved.read_text()) if saved.exists() else 0
for step in range(start, int(steps)):
    time.sleep(0.05)
    if (folder / "fail").exists():
        (folder / "fail").unlink(missing_ok=True)
        sys.exit(3)
    if stop.exists() and (text := stop.read_text()):
        time.sleep(save_seconds)
        saved.write_text(str(step))
        sys.exit(128 + int(text))
    if step % 10 == 9:
        saved.write_text(str(step + 1))
(folder / f"done-{rank}").write_text(f"from {start}")
