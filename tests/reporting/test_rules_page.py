"""The page's sentence on the position rules fits the numbers, whichever way they came out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_up_results import Files, write_all

from sinktrain.base.errors import UserError
from sinktrain.reporting.load import load_results
from sinktrain.reporting.material import Material
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.records import PositionRules, RulePair
from sinktrain.reporting.report import report
from sinktrain.reporting.sources import Sources


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read the page's words; drawing takes most of its time."""
    monkeypatch.setattr(Picture, "svg", "<svg></svg>")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_all(tmp_path_factory.mktemp("rules") / "in", tokens=600, layers=2, heads=2)


def pair(difference: float, low: float, high: float, tokens: int = 6144, enough: bool = True) -> dict[str, Any]:
    return {"tokens": tokens, "ppl_cache": 20.5, "ppl_original": 23.25, "difference": difference,
            "interval": [low, high], "block_length": 9, "enough": enough}  # fmt: skip


def rules(past: dict[str, Any] | None, full: dict[str, Any] | None = None, length: int | None = 2048) -> dict[str, Any]:
    return {"cache": "1+255", "array": "1+255 original", "trained_length": length, "tokens": 7936,
            "tokens_past_trained_length": past["tokens"] if past else 0,
            "full_cache": full or pair(0.07, 0.06, 0.08, 7936), "past_trained_length": past}  # fmt: skip


def paragraph(files: Files, folder: Path, record: object, base: object = None) -> str:
    """The text of the page's paragraph, with `record` as the fine-tuned model's and `base` as the base's."""
    for source, name, value in ((files.results, "tuned", record), (files.base, "base", base)):
        (folder / name).mkdir()
        data = json.loads((source / "results.json").read_text())
        more = {} if value is None else {"position_rules": value}
        (folder / name / "results.json").write_text(json.dumps(data | more))
        (folder / name / "nll.parquet").write_bytes((source / "nll.parquet").read_bytes())
    page = report(out=folder / "a.html", results=folder / "tuned", base=folder / "base").read_text()
    found = re.findall(r'<p class="note" id="position-rules">(.*?)</p>', page, flags=re.DOTALL)
    assert len(found) == 1
    assert page.index('id="caches-h"') < page.index('id="position-rules"') < page.index("NLL along the stream")
    return " ".join(unescape(re.sub(r"<[^>]+>", "", found[0])).split())


PAST = "In the fine-tuned model, cache 1+255, past the training length of 2,048 tokens, "
NONE_PAST = "In the fine-tuned model, cache 1+255, {}, so nothing can be said of what “original” costs past it."
ALL_COSTS = (
    " On all its tokens with a full cache, “original” costs 0.0700 nats a token (95% interval 0.0600 to 0.0800; "
    "PPL +7.25%): PPL 23.25 against 20.50 with “cache”, on 7,936 tokens."
)


@pytest.mark.parametrize(("record", "sentence"), [
    (rules(pair(0.12, 0.1, 0.14)),
     PAST + "“original” costs 0.1200 nats a token (95% interval 0.1000 to 0.1400; PPL +12.75%): PPL 23.25 against "
     "20.50 with “cache”, on 6,144 tokens."),
    (rules(pair(-0.12, -0.14, -0.1)),
     PAST + "“original” saves 0.1200 nats a token (95% interval 0.1000 to 0.1400; PPL \u221211.31%): PPL"),
    (rules(pair(-0.001, -0.004, 0.002)),
     PAST + "the two rules cannot be told apart, and “original” minus “cache” is \u22120.0010 nats a token (95% "
     "interval \u22120.0040 to +0.0020; PPL \u22120.10%): PPL"),
    (rules(pair(0.001, -0.002, 0.004)),
     PAST + "the two rules cannot be told apart, and “original” minus “cache” is +0.0010 nats"),
    (rules(pair(0, 0, 0)), PAST + "the two rules cannot be told apart, and “original” minus “cache” is +0.0000"),
    (rules(pair(3, 2, 4)),
     PAST + "“original” costs 3.0000 nats a token (95% interval 2.0000 to 4.0000; PPL \u00d7 20.09): PPL"),
    (rules(None, length=8192),
     NONE_PAST.format("the text was not longer than the training length of 8,192 tokens") + ALL_COSTS),
    (rules(None, pair(0.1, 0.1, 0.1, 9, enough=False), length=8192),
     NONE_PAST.format("the text was not longer than the training length of 8,192 tokens")),
    (rules(None, length=None), NONE_PAST.format("the training length is not known") + ALL_COSTS),
    (rules(pair(0.9, 0.9, 0.9, 12, enough=False)),
     NONE_PAST.format("only 12 tokens stand past the training length of 2,048") + ALL_COSTS),
])  # fmt: skip
def test_the_sentence_fits_the_numbers(files: Files, tmp_path: Path, record: dict[str, Any], sentence: str) -> None:
    text = paragraph(files, tmp_path, record)
    assert sentence in text
    said = re.findall(r"“original” costs \d|“original” saves \d|cannot be told apart", text)
    assert len(said) == (0 if text.endswith("past it.") else 1)
    assert "was not measured" not in text and "base model" not in text


def test_both_rules_are_explained_and_results_without_the_record_say_so(files: Files, tmp_path: Path) -> None:
    text = paragraph(files, tmp_path, None)
    assert re.search(r"“cache” counts it inside the cache, as the StreamingLLM paper", text)
    assert re.search(r"“original” counts it in the text, as the MIT News article", text)
    assert "The table was measured with “cache”." in text
    assert text.endswith("was not measured; sinktrain evaluate --both_rules true does.")


def test_each_model_has_its_own_sentence(files: Files, tmp_path: Path) -> None:
    text = paragraph(files, tmp_path, rules(pair(-0.2, -0.3, -0.1)), rules(pair(0.2, 0.1, 0.3)))
    tuned, base = text.index("In the fine-tuned model"), text.index("In the base model")
    assert tuned < text.index("“original” saves 0.2000") < base < text.index("“original” costs 0.2000")


def test_another_run_that_was_streamed_under_both_says_it(files: Files, tmp_path: Path) -> None:
    middle = load_results(files.results, "RUN")
    rule = PositionRules("1+255", 2048, RulePair(9, 1, 1, 0.5, (0.4, 0.6), True), None)
    other = replace(middle, label="other", position_rules=rule)
    material = Material(Sources(), results=middle, every=(middle, other))
    assert material.under_both_rules == [("other", other)]
    asked = replace(middle, position_rules=rule)
    assert replace(material, results=asked).under_both_rules == [("evaluated", asked)]
    assert replace(material, every=(middle,)).under_both_rules == [("evaluated", middle)]


def test_a_malformed_record_is_named(files: Files, tmp_path: Path) -> None:
    record = rules(pair(0.1, 0.1, 0.1))
    del record["full_cache"]["difference"]
    with pytest.raises(UserError, match=r"--results .*lacks `difference`; write it again"):
        paragraph(files, tmp_path, record)
