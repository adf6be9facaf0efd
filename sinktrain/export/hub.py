"""An exported folder to a repository of the Hugging Face hub, in one commit: it is there as a whole or not at all."""

from __future__ import annotations

import hashlib
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sinktrain.base.errors import UserError
from sinktrain.base.models import quiet
from sinktrain.base.terminal import say
from sinktrain.checkpoints.disk import checksum
from sinktrain.export.renamed import renamed

OPTION = "--push_to_hub"
_AGAIN = (408, 409, 412, 429, 500, 502, 503, 504)
"""HTTP statuses that pass: too busy, out of order, or another commit came first."""
_ATTEMPTS, _LONGEST = 6, 300.0
_CUT = {"TransportError", "ConnectionError", "TimeoutException", "Timeout"}
"""What the clients that the hub's library has had (requests, httpx) raise when a connection fails."""
_PASSING = (OSError, RuntimeError)
"""What else may pass; its other protocol, Xet, tells of whatever went wrong by a RuntimeError."""

T = TypeVar("T")


@dataclass(frozen=True)
class HubOptions:
    """How to push.

    Args:
        public: Make the repository public if it is not there yet; without it a new one is private, and one that is
            public already is refused.
        revision: The branch, which is made if it is not there.
        message: Of the commit; without it, the step that is exported.
    """

    public: bool = False
    revision: str = "main"
    message: str | None = None


def check_repository(name: str, option: str = OPTION) -> None:
    """Refuses what cannot be pushed to, before any work is done.

    Raises:
        UserError: the name is none, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = str(error).partition(":")[0].rstrip(".")
        raise UserError(f"{option} {name}: is no name of a repository ({reason}); give USER/NAME.") from error
    if get_token() is None:
        raise UserError(f"{option} {name}: there is no token for the hub; set HF_TOKEN, or run `hf auth login` first.")


def upload(
    folder: Path, name: str, options: HubOptions, message: str, option: str = OPTION, checkpoint: Path | None = None
) -> str:
    """Makes the repository what the folder is, and returns the address of the commit.

    Large files go first, and those that the hub has already are not sent again: after a failure the same call goes on.
    Weights in the repository that the folder does not have (of a former export, in more files) are removed. The card
    and the adapters' config name the repository and its branch there, in the place of the folder.

    Args:
        folder: that `sinktrain export` wrote.
        name: of the repository, USER/NAME or NAME; it is made if it is not there.
        options: see `HubOptions`.
        message: of the commit, if the options have none.
        option: that named the repository.
        checkpoint: that it was compared with, for the command that goes on.

    Raises:
        UserError: the hub refuses, or fails again and again, or the repository is public and was not to be.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def attempt(place: Path) -> str:
        made = api.create_repo(name, private=not options.public, exist_ok=True)
        if not options.public and api.repo_info(made.repo_id).private is False:
            raise UserError(f"{option} {name}: is public; pass --hub.public true, or choose another repository.")
        files = found | renamed(folder, place, made.repo_id, options.revision)
        if options.revision != "main":
            api.create_branch(made.repo_id, branch=options.revision, exist_ok=True)
        there = api.list_repo_files(made.repo_id, revision=options.revision)
        gone = [path for path in there if _is_weight(path) and path not in files]
        operations: list[Any] = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
        operations += [CommitOperationDelete(path) for path in gone]
        commit = api.create_commit(
            made.repo_id, operations, commit_message=options.message or message, revision=options.revision
        )
        _check(api, made.repo_id, commit.oid, files, option)
        return str(commit.commit_url)

    again = f"go on with `{_command(folder, name, options, checkpoint)}`"
    with quiet(), tempfile.TemporaryDirectory() as place:
        url = _patiently(lambda: attempt(Path(place)), f"{option} {name}", again)
    say(f"pushed {len(found)} files to {name}, branch {options.revision}: {url}")
    return url


def _command(folder: Path, name: str, options: HubOptions, checkpoint: Path | None) -> str:
    """A command line that does the same."""
    words = ["sinktrain", "push", str(folder), name]
    words += ["--checkpoint", str(checkpoint)] if checkpoint is not None else []
    words += ["--hub.public", "true"] if options.public else []
    words += ["--hub.revision", options.revision] if options.revision != "main" else []
    words += ["--hub.message", options.message] if options.message is not None else []
    return shlex.join(words)


def _is_weight(path: str) -> bool:
    return "/" not in path and path.endswith((".safetensors", ".safetensors.index.json"))


def _check(api: Any, name: str, commit: str, files: dict[str, Path], option: str) -> None:
    """Every file is there as it is here, by its size and hash."""
    found = {entry.path: entry for entry in api.list_repo_tree(name, recursive=True, revision=commit)}
    for path, file in files.items():
        entry, size = found.get(path), file.stat().st_size
        if entry is None or entry.size != size:
            same = False
        elif entry.lfs is not None:
            same = entry.lfs.sha256 == checksum(file)
        else:  # as git names it
            same = entry.blob_id == hashlib.sha1(b"blob %d\0" % size + file.read_bytes()).hexdigest()
        if not same:
            raise UserError(f"{option} {name}: its {path} is not what was sent; push again.")


def _patiently(attempt: Callable[[], T], what: str, again: str) -> T:
    """The result of a call that may be made again, after what passes by itself."""
    from huggingface_hub.errors import HfHubHTTPError

    for number in range(1, _ATTEMPTS + 1):
        try:
            return attempt()
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status not in _AGAIN or number == _ATTEMPTS:
                raise UserError(f"{what}: {_refusal(status, error)}; {again}.") from error
            wait = _wait(number, error.response.headers.get("Retry-After"))
            reason = f"status {status}"
        except Exception as error:
            if not _CUT & {kind.__name__ for kind in type(error).__mro__} and not isinstance(error, _PASSING):
                raise
            if number == _ATTEMPTS:
                reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:160]
                raise UserError(f"{what}: the hub cannot be reached ({reason}); {again}.") from error
            wait, reason = _wait(number, None), type(error).__name__
        say(f"the hub: {reason}; again in {wait:.0f} s")
        time.sleep(wait)
    raise AssertionError("unreachable")


def _wait(number: int, asked: str | None) -> float:
    """Seconds: what the hub asked for, or 1, 2, 4 ...; never more than five minutes."""
    wanted = float(asked) if asked and asked.isdigit() else 2.0 ** (number - 1)
    return min(wanted, _LONGEST)


def _refusal(status: int, error: Exception) -> str:
    if status == 401:
        return "the hub does not know this token; set HF_TOKEN, or run `hf auth login`"
    if status == 403:
        return "this token may not write there; use one with write access, or another repository"
    if status == 404:
        return "there is no such repository, or this token may not see it; check the name"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"the hub refuses (status {status}: {first[:120]})"
