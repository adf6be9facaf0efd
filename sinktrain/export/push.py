"""The verb `push`: an exported folder to the hub, after it passed its checks."""

from __future__ import annotations

from pathlib import Path

from sinktrain.base.errors import UserError
from sinktrain.base.terminal import say
from sinktrain.export.check import run_checks
from sinktrain.export.hub import HubOptions, check_repository, upload
from sinktrain.export.record import read_record


def push(folder: Path, repository: str, checkpoint: Path | None = None, hub: HubOptions = HubOptions()) -> str:  # noqa: B008
    """Pushes an exported folder to a repository of the hub, in one commit, once it passed the checks of `check-export`.

    What was sent before a failure is not sent again: the same command goes on. The token is that of HF_TOKEN or
    `hf auth login`; HF_ENDPOINT names another hub. Large files go by whichever protocol the hub's client takes: tested
    is that of LFS, which HF_HUB_DISABLE_XET=1 asks for.

    Args:
        folder: That `sinktrain export` wrote.
        repository: USER/NAME, or NAME in the token's own space; made, private, if it is not there.
        checkpoint: That the folder was written from, to compare with once more.
        hub: How to push.

    Returns:
        The address of the commit.
    """
    check_repository(repository, "--repository")
    return push_checked(folder, repository, checkpoint, hub, "--repository")


def push_checked(folder: Path, repository: str, checkpoint: Path | None, hub: HubOptions, option: str) -> str:
    """Checks, then uploads.

    Raises:
        UserError: a check fails, or the hub refuses.
    """
    record = read_record(folder)
    checks = run_checks(folder, checkpoint)
    failed = [check for check in checks if not check.holds]
    if failed:
        raise UserError(
            f"{option} {repository}: not pushed, since {folder} fails {len(failed)} checks ({failed[0].claim}: "
            f"{failed[0].seen}); see `sinktrain check-export {folder}`."
        )
    say(f"{folder}: all {len(checks)} checks hold")
    message = f"Step {record['step']}, exported by sinktrain {record['sinktrain']}"
    return upload(folder, repository, hub, message, option, checkpoint)
