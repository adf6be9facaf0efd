"""The table of questions keeps apart what was answered by a letter and in words."""

from __future__ import annotations

import json
import re
from pathlib import Path

from made_up_runs import write_answers

from sinktrain.reporting.report import report


def table_of(path: Path) -> str:
    page = report([path], out=path.with_name("page.html")).read_text()
    return page[page.index('<table class="answers">') :].partition("</table>")[0]


def test_questions_are_told_apart_by_how_they_are_answered(tmp_path: Path) -> None:
    write_answers(tmp_path / "run")
    table = table_of(tmp_path / "run" / "questions.json")
    heads = [re.sub("<[^>]*>", " ", head).split() for head in re.findall(r"<th scope=\"col\".*?</th>", table)]
    assert heads[-3:] == [["choices", "by", "chance", "25.0%"], ["in", "words"], ["answer", "in", "it"]]
    cells = re.findall(r'<td class="n">(<data[^>]*>\d+</data> of .*?)</td>', table)
    assert [re.sub("<[^>]*>", "", cell) for cell in cells] == ["63 of 120", "21 of 80", "44 of 80"] * 3


def test_kinds_of_questions_that_were_not_asked_have_no_column(tmp_path: Path) -> None:
    write_answers(tmp_path / "run")
    path = tmp_path / "run" / "questions.json"
    record = json.loads(path.read_text())
    for row in record["rows"]:
        row["choices"] = {"asked": 0, "right": 0}
        del row["words"]
    path.write_text(json.dumps(record | {"chance": None}))
    table = table_of(path)
    assert "choices" not in table and "words" not in table and "answer in it" not in table
