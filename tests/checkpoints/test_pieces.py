"""Tensors cut into parts in any way, written by several ranks, and read back in any other way."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.checkpoints import disk
from sinktrain.checkpoints.pieces import Piece, Place, encode
from sinktrain.checkpoints.reader import Reader
from sinktrain.checkpoints.store import Draft, Found, clean, found, prune

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16]


def some(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    values = torch.randint(0, 2 if dtype == torch.bool else 200, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


@given(st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_file_is_what_safetensors_reads(tensors: list[tuple[list[int], torch.dtype]]) -> None:
    made = {f"t{n}": some(tuple(shape), dtype, n) for n, (shape, dtype) in enumerate(tensors)}
    pieces = [Piece(name, Place.whole(tensor.shape), tensor) for name, tensor in made.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        written = disk.write_file(path, encode(pieces))
        read = load_file(path)
        assert (written.bytes, written.sha256) == (path.stat().st_size, disk.checksum(path))
    assert read.keys() == made.keys()
    for name, tensor in made.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_a_view_is_written_as_it_looks() -> None:
    tensor = some((4, 6), torch.float32).T[1:5:2]
    content = b"".join(bytes(part) for part in encode([Piece("x", Place.whole(tensor.shape), tensor)]))
    assert content.endswith(tensor.contiguous().numpy().tobytes())


def cuts(size: int, parts: int) -> list[tuple[int, int]]:
    """Ranges as FSDP2 makes them: the last ones may be short or empty."""
    chunk = -(-size // parts)
    return [(min(n * chunk, size), min((n + 1) * chunk, size)) for n in range(parts)]


def spread(tensor: Tensor, how: str, ranks: int) -> list[tuple[Place, Tensor]]:
    """What each rank holds of it: `rows`, `columns`, a `grid`, a `flat` run of it, or the `whole`."""
    shape = tuple(tensor.shape)
    if how == "whole" or not shape:
        return [(Place.whole(shape), tensor)] * ranks
    if how == "flat":
        parts = cuts(tensor.numel(), ranks)
        return [(Place(shape, (a,), (b - a,), flat=True), tensor.flatten()[a:b]) for a, b in parts]
    across = {"rows": (ranks, 1), "columns": (1, ranks), "grid": (2, ranks // 2)}[how]
    split = [cuts(size, n) for size, n in zip(shape, across, strict=False)]
    split += [[(0, size)] for size in shape[2:]]
    found = []
    for box in itertools.product(*split):
        where = tuple(slice(a, b) for a, b in box)
        found.append((Place(shape, tuple(a for a, _ in box), tuple(b - a for a, b in box)), tensor[where]))
    return found


WAYS = st.sampled_from(["rows", "columns", "grid", "flat", "whole"])


@given(st.lists(st.integers(1, 7), max_size=3), WAYS, st.sampled_from([1, 2, 4]), WAYS, st.sampled_from([1, 2, 4]),
       st.sampled_from([torch.float32, torch.bfloat16]))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_way_to_any_other(
    shape: list[int], before: str, ranks: int, after: str, new_ranks: int, dtype: torch.dtype
) -> None:
    ranks, new_ranks = (max(2, n) if how == "grid" else n for n, how in ((ranks, before), (new_ranks, after)))
    tensor = some(tuple(shape), dtype, len(shape))
    with tempfile.TemporaryDirectory() as folder:
        draft = Draft(Path(folder), 1, "a")
        for rank, (place, values) in enumerate(spread(tensor, before, ranks)):
            draft.write_rank(rank, [Piece("x", place, values)], {})
        reader = Reader(draft.path)
        assert torch.equal(reader.whole("x"), tensor)
        for place, expected in spread(tensor, after, new_ranks):
            target = torch.full_like(expected, 77).float()
            reader.read_into(target, "x", place)
            assert torch.equal(target, expected.float())
        reader.close()


def write(folder: Path, step: int, permanent: bool = True, ranks: int = 1, **facts: Any) -> Path:
    draft = Draft(folder, step, "a")
    for rank in range(ranks):
        place = Place((4,), (2 * rank,), (2,)) if ranks > 1 else Place.whole((4,))
        draft.write_rank(rank, [Piece("x", place, torch.full((4 // ranks,), float(step)))], {"rank": rank})
    return draft.publish(ranks, {"note.json": [1]}, {"permanent": permanent, **facts}, 5.0, lambda: None)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1, ranks=2)
    reader = Reader(path)
    with pytest.raises(UserError, match=r"holds no y"):
        reader.read_into(torch.zeros(4), "y", Place.whole((4,)))
    with pytest.raises(UserError, match=r"shape \[4\] where the model has \[5\]"):
        reader.read_into(torch.zeros(5), "x", Place.whole((5,)))
    (path / "rank-00001.json").write_text(json.dumps({"pieces": {}, "state": {}}))
    with pytest.raises(UserError, match="parts of x are missing"):
        Reader(path).read_into(torch.zeros(4), "x", Place.whole((4,)))


def test_found_and_pruned(tmp_path: Path) -> None:
    for step, permanent in ((1, True), (2, False), (3, False), (4, False), (5, True), (6, False), (7, False)):
        write(tmp_path, step, permanent)
    write(tmp_path, 8, permanent=False)
    (tmp_path / "step-000000008" / "manifest.json").unlink()  # damaged: neither counted nor thrown away
    (tmp_path / "step-x").mkdir()
    prune(tmp_path, 2)
    assert [each.step for each in found(tmp_path)] == [8, 7, 6, 5, 1]
    prune(tmp_path, 2)
    assert [each.step for each in found(tmp_path)] == [8, 7, 6, 5, 1]


def test_the_two_newest_are_never_thrown_away(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, permanent=False)
    prune(tmp_path, 0)
    assert [each.step for each in found(tmp_path)] == [3, 2]


def test_clean_removes_drafts_alone(tmp_path: Path) -> None:
    kept = write(tmp_path, 1)
    Draft(tmp_path, 2, "b").write_rank(0, [], {})
    (tmp_path / ".gone-step-000000000-1").mkdir()
    (tmp_path / ".mine").mkdir()
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", kept.name]
    clean(tmp_path / "nowhere")


def test_rank_0_does_not_wait_for_ever(tmp_path: Path) -> None:
    draft = Draft(tmp_path, 1, "a")
    draft.write_rank(0, [], {})
    with pytest.raises(
        UserError, match=r"checkpoints\.folder .*: rank-00001\.json was not written in 0 s; is the folder"
    ):
        draft.publish(2, {}, {}, 0.1, lambda: None)
    assert not found(tmp_path)


def test_checks_are_shared_out(tmp_path: Path) -> None:
    path = write(tmp_path, 1, ranks=2)
    each = Found(path, 1)
    for share in range(3):
        each.check(share, 3)
    assert each.document("note.json") == [1] and each.rank_state(1) == {"rank": 1}
    manifest = each.manifest()
    assert set(manifest["files"]) == {file.name for file in path.iterdir()} - {"manifest.json"}
