"""The page as a browser shows it: no complaints, nothing that overflows, text that can be read, in light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, executable
from made_up_runs import write_run

from sinktrain.reporting.report import report

LOOK = (Path(__file__).parent / "look.js").read_text()
pytestmark = pytest.mark.skipif(
    executable() is None, reason="no Chromium on this machine; install the package chromium, or set SINKTRAIN_CHROMIUM"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = executable()
    assert program is not None
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    run = write_run(folder / "run")
    grid = run / "grid"
    return {
        "everything": report([run], out=folder / "everything.html"),
        "compared": report([grid / "token-0", grid / "token-1", grid / "none"], out=folder / "c.html", compare=True),
        "one": report([grid / "none"], out=folder / "one.html"),
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize("name", ["everything", "compared", "one"])
def test_it_looks_as_it_should(browser: Browser, pages: dict[str, Path], name: str, width: int, theme: str) -> None:
    browser.open(pages[name], width, theme)
    found = browser.run(LOOK)
    assert found["wrong"] == []
    assert found["seen"] > 250  # pieces of text: the check has not looked at an empty page
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") == (theme == "dark")
    assert browser.run("innerWidth") == width
    assert browser.complaints == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}


def test_links_to_sources_lead_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["everything"], 1400, "light")
    lost = (
        "[...document.querySelectorAll('a[href]')].filter(a => !document.querySelector(a.getAttribute('href'))).length"
    )
    assert browser.run("document.querySelectorAll('sup.ref a').length") > 20
    assert browser.run(lost) == 0


BREAK: dict[str, tuple[str, str]] = {
    "pale": ("<style>figcaption { color: #999 !important }</style>", "contrast"),
    "pale in a figure": ("<style>:root { --soft: #b0b0b0 }</style>", "text tokens so far"),
    "wide": ("<div style='width: 2000px'>wide</div>", "the page is"),
    "small": ("<p style='font-size: 6px'>small</p>", "6px"),
    "small in a figure": ("<style>.panel { width: 180px }</style>", "pixels"),
    "outside": (
        "<svg role=img aria-labelledby=x viewBox='0 0 90 20'><text x='80' y='12'>beyond</text></svg>",
        "outside",
    ),
    "overlap": (
        "<svg role=img aria-labelledby=x viewBox='0 0 90 20'><text y='12'>one</text><text y='12'>two</text></svg>",
        "overlap",
    ),
}


@pytest.mark.parametrize("fault", BREAK)
def test_the_check_sees_what_is_wrong(browser: Browser, pages: dict[str, Path], tmp_path: Path, fault: str) -> None:
    added, word = BREAK[fault]
    page = tmp_path / "broken.html"
    page.write_text(pages["one"].read_text().replace("</main>", f"{added}</main>"))
    browser.open(page, 1400, "light")
    assert any(word in sentence for sentence in browser.run(LOOK)["wrong"])


@pytest.mark.parametrize(
    "added", ["<script>console.error('no')</script>", "<script>nothing()</script>", "<img src='missing.png' alt=''>"]
)
def test_complaints_are_heard(
    browser: Browser, pages: dict[str, Path], tmp_path: Path, added: str, settle: Callable[[Browser], Any]
) -> None:
    page = tmp_path / "broken.html"
    page.write_text(pages["one"].read_text().replace("</main>", f"{added}</main>"))
    browser.open(page, 1400, "light")
    assert settle(browser)


@pytest.fixture
def settle() -> Callable[[Browser], Any]:
    """What the browser has complained of, once it has done what it was going to do."""

    def look(browser: Browser) -> list[str]:
        browser.run("new Promise(done => setTimeout(done, 50))")
        return browser.complaints

    return look
