"""Documents from every kind of source, and what is said of a bad one."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from sinktrain.base.errors import UserError
from sinktrain.data.sources import documents, local_files, standard_library_files

TEXTS = ["first\r\ndocument ä€😀\n", "second  one\n\n", "third"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def json_lines(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"number": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def refused(source: Path | str, **options: Any) -> str:
    """The one sentence that says why, which must name the option and the source."""
    with pytest.raises(UserError) as raised:
        list(documents(str(source), **options))
    sentence = str(raised.value)
    assert sentence.startswith(f"--source {source}") and sentence.endswith(".") and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("packed", PACKERS)
def test_text_file_splits_at_form_feed_lines(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(PACKERS[packed]("\f\n".join(text + "\n" for text in TEXTS).encode()))
    assert list(documents(str(path))) == [text + "\n" for text in TEXTS]


def test_form_feed_inside_a_line_does_not_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\fdef two():\n\f\r\nthree")
    assert list(documents(str(path))) == ["one\n\fdef two():\n", "three"]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo")
    assert list(documents(str(tmp_path / "a.txt"))) == ["one\n\ufefftwo"]


def test_zst_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    parts = [letter * 300_000 for letter in "abc"]  # longer than any buffer
    (tmp_path / "a.txt.zst").write_bytes(b"".join(zstandard.compress(part.encode()) for part in parts))
    assert list(documents(str(tmp_path / "a.txt.zst"))) == ["".join(parts)]


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("field", ["text", "body"])
def test_jsonl(tmp_path: Path, packed: str, field: str) -> None:
    path = tmp_path / f"{'a' if packed else 'a [1]'}.jsonl{packed}"  # brackets are a pattern to `datasets`
    path.write_bytes(PACKERS[packed](json_lines(TEXTS, field)))
    assert list(documents(str(path), field=field)) == TEXTS


@pytest.mark.parametrize("packed", PACKERS)
def test_json_array(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.json{packed}"
    path.write_bytes(PACKERS[packed](json.dumps([{"text": text} for text in TEXTS]).encode()))
    assert list(documents(str(path))) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": [*TEXTS, None], "number": [1, 2, 3, 4]})
    assert list(documents(str(path))) == [*TEXTS, ""]


def test_parquet_without_rows_has_no_documents(tmp_path: Path) -> None:
    import pyarrow

    path = write_parquet(tmp_path / "a.parquet", {"text": pyarrow.array([], pyarrow.string())})
    assert list(documents(str(path))) == []


def test_folder_and_glob_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("from b/1")
    (tmp_path / "c.jsonl").write_bytes(json_lines(["from c", "and c"]))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"from a"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    expected = ["from a", "from b/1", "from c", "and c"]
    assert list(documents(str(tmp_path))) == expected
    assert list(documents(f"{tmp_path}/**/*")) == expected
    assert list(documents(f"{tmp_path}/*.gz")) == ["from a"]


def test_existing_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "[x].txt").write_text("brackets")
    assert list(documents(str(tmp_path / "[x].txt"))) == ["brackets"]


def test_standard_library() -> None:
    files = standard_library_files()
    names = {path.name for path in files}
    assert {"argparse.py", "os.py", "decoder.py"} <= names and len(files) == len(set(files))
    assert not any("site-packages" in path.parts or "test" in path.parts for path in files)
    texts = list(documents("stdlib"))
    assert texts[files.index(next(path for path in files if path.name == "os.py"))].startswith('r"""OS routines')
    assert 8e6 < sum(map(len, texts)) < 20e6


def test_names_of_the_hub_and_paths_are_told_apart(tmp_path: Path) -> None:
    assert local_files("wikitext") is None
    assert local_files("Salesforce/wikitext") is None
    for path in ("./notes", "/no/such", "notes.txt", "data/corpus.jsonl.zst", "a/b/c"):
        assert "no such file or folder" in refused(path)
    with pytest.raises(UserError, match="--source: is an empty name"):
        documents("")


def test_unusable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert "is empty" in refused(tmp_path / "empty.txt")
    (tmp_path / "a.docx").write_text("x")
    assert ".parquet" in refused(tmp_path / "a.docx")
    (tmp_path / "folder").mkdir()
    assert "folder without text" in refused(tmp_path / "folder")
    assert "matches no text file" in refused(tmp_path / "*.md")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.zst"])
def test_not_utf8_names_file_and_byte(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = b'{"text": "fine"}\n{"text": "caf\xe9"}\n'
    path.write_bytes(PACKERS[path.suffix if path.suffix in PACKERS else ""](content))
    assert f"not UTF-8 at byte {content.index(0xE9)} (0xe9)" in refused(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_damaged_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"neither this nor that")
    assert "cannot be read" in refused(tmp_path / name)


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_truncated_file(tmp_path: Path, kind: str, packed: str) -> None:
    whole = PACKERS[packed](json_lines([os.urandom(1000).hex() for _ in range(9)]))
    (tmp_path / f"a.{kind}{packed}").write_bytes(whole[:-100])
    assert "cannot be read" in refused(tmp_path / f"a.{kind}{packed}")


def test_missing_field_names_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS, "body"))
    assert "'text'" in (sentence := refused(tmp_path / "a.jsonl")) and "number, body" in sentence
    path = write_parquet(tmp_path / "a.parquet", {"body": TEXTS, "title": TEXTS})
    assert "'text'" in (sentence := refused(path)) and "body, title" in sentence


def test_field_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    assert "holds int" in refused(tmp_path / "a.jsonl", field="number")


def test_hub_out_of_reach() -> None:
    code = (
        "from sinktrain.base.errors import UserError\n"
        "from sinktrain.data.sources import documents\n"
        "try: list(documents('someone/something'))\n"
        "except UserError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert ran.stdout.startswith("--source someone/something: is no file here") and ran.stdout.count("\n") == 1
    assert "Traceback" not in ran.stderr and ran.returncode == 0
