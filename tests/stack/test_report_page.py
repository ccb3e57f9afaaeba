"""The report page in a real browser: what a reader sees, clicks, types and hovers over, at desktop and phone width."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from score_openrlhf.report.page import render
from score_openrlhf.report.run_data import read_runs
from tests.support.report_runs import HOSTILE, make_run
from tests.support.webdriver import WebDriver, install_chromium

pytestmark = pytest.mark.skipif(
    os.environ.get("SCORE_OPENRLHF_NO_BROWSER") == "1", reason="SCORE_OPENRLHF_NO_BROWSER=1 leaves the browser out"
)
CHART = '.chart[data-title="Training accuracy"]'
READOUT = f"{CHART} .readout"


@pytest.fixture(scope="module")
def browser():
    install_chromium()
    driver = WebDriver()
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(
        folder / "guided", steps=40, per_step=32, num_eval=120, hostile=True, config={"run_name": f"guided {HOSTILE}"}
    )
    make_run(folder / "smart", steps=40, per_step=32, num_eval=120, gain=0.4, seed=1, config={"method": "smart_score"})
    make_run(folder / "short", steps=7, planned=40, per_step=16, seed=2)
    return folder


def write_page(folder: Path, *names: str, max_trajectories: int = 20000) -> Path:
    path = folder / f"{'-'.join(names)}.html"
    page = render(read_runs([folder / name for name in names]), max_trajectories=max_trajectories)
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture
def guided(browser, runs) -> WebDriver:
    """The browser on the page of one finished run."""
    browser.resize(1280, 900)
    browser.open(write_page(runs, "guided"))
    return browser


def rows_of(runs: Path, run: str, name: str) -> list[dict]:
    return [json.loads(line) for line in (runs / run / "trajectories" / f"{name}.jsonl").open()]


def position(browser: WebDriver) -> str:
    return browser.texts(".pager .position")[0]


def choose(browser: WebDriver, selector: str, value: str) -> None:
    browser.click(f'{selector} option[value="{value}"]')


def test_page_shows_every_part_without_a_complaint(guided):
    assert guided.complaints() == []
    assert guided.texts("section > h2") == ["Figures", "Curves", "Hints", "Time", "Trajectories", "Configuration"]
    assert len(guided.texts(".tile strong")) == 4
    assert len(guided.texts(".chart")) >= 20
    assert all(len(text) > 10 for text in guided.texts(".turn .sample")[:3])


def test_hostile_text_is_shown_and_does_nothing(guided):
    first = guided.texts("article .turn .sample")
    assert [HOSTILE in text.replace("\n", "") for text in first[:3]] == [True, True, True]
    assert guided.run("return document.title") == f"guided {HOSTILE}"
    assert guided.run("return document.querySelectorAll('img, article script').length") == 0
    # even a handler that did get into the page would be stopped by its policy
    guided.run("const x = document.createElement('div'); x.innerHTML = arguments[0]; document.body.append(x)", HOSTILE)
    guided.wait(lambda: any("Content Security Policy" in line for line in guided.complaints()), "the policy to refuse")
    assert guided.run("return document.title") == f"guided {HOSTILE}"


def test_hovering_a_curve_reads_its_values_at_a_step(guided, runs):
    lines = [json.loads(line) for line in (runs / "guided" / "metrics.jsonl").open()]

    def check(line: dict) -> None:
        name1, value1, name2, value2 = guided.texts(READOUT)[0].split()
        assert (name1, name2) == ("attempt", "revision")
        assert [float(value1), float(value2)] == pytest.approx([line["acc_t1"], line["acc_t2"]], abs=5.01e-4)

    check(lines[-1])
    guided.hover(f"{CHART} .plot")
    step = int(guided.texts(f"{CHART} .when")[0].removeprefix("step "))
    assert 15 <= step <= 25  # the middle of 40
    check(lines[step - 1])
    assert guided.texts('.chart[data-title="Reward"] .when') == [f"step {step}"]  # all charts follow


def test_arrow_keys_read_a_curve(guided):
    for key, step in (("ArrowLeft", 40), ("ArrowLeft", 39), ("ArrowRight", 40)):
        guided.type(f"{CHART} .plot", key)
        assert guided.texts(f"{CHART} .when") == [f"step {step}"]
    guided.type(f"{CHART} .plot", "Escape")
    assert guided.texts(f"{CHART} .when") == ["last"]


def test_smoothing_switch_redraws_the_curve(guided):
    def paths() -> list[str]:
        return guided.run(
            "return [...document.querySelectorAll(arguments[0])].map((p) => p.getAttribute('d'))", f"{CHART} .line"
        )

    light = paths()
    assert len(light) == 4  # two metrics, raw behind smoothed
    guided.click('#smoothing label:has(input[value="strong"])')
    strong = paths()
    assert len(strong) == 4 and strong[0] == light[0] and strong[1] != light[1]
    guided.click("#smoothing label:first-of-type")
    assert paths() == [strong[0], strong[2]]  # the raw curves alone


def test_stage_boundary_is_where_stage_two_begins(guided):
    assert (
        guided.run("return document.querySelector(arguments[0]).textContent", f"{CHART} text.boundary") == "stage II"
    )
    place = "return Number(document.querySelector(arguments[0]).getAttribute('x1'))"
    boundary = guided.run(place, f"{CHART} line.boundary")
    guided.type(f"{CHART} .plot", "Home")
    positions = []
    for _ in range(15):
        positions.append(guided.run(place, f"{CHART} .cursor"))
        guided.type(f"{CHART} .plot", "ArrowRight")
    assert positions[12] < boundary < positions[13]  # stage I is steps 1 to 13 of 40


@pytest.mark.parametrize(("outcome", "grades"), [("i2c", ("wrong", "right")), ("c2i", ("right", "wrong"))])
def test_filter_by_outcome(guided, runs, outcome, grades):
    choose(guided, "#file", "training")
    rows = [row for step in range(1, 41) for row in rows_of(runs, "guided", f"step_{step:06d}")]
    expected = sum((row["grade_t1"], row["grade_t2"]) == grades for row in rows)
    guided.click(f'#outcome label:has(input[value="{outcome}"])')
    assert position(guided).endswith(f"of {expected}")
    shown = guided.texts("article .grade")
    assert set(shown[0::2]) == {grades[0]} and set(shown[1::2]) == {grades[1]}


@pytest.mark.parametrize("box", ["leak", "truncated", "failed"])
def test_filter_by_what_happened(guided, runs, box):
    test = {
        "leak": lambda row: row["leak"] > 0,
        "truncated": lambda row: any(row[p] and row[p]["truncated"] for p in ("attempt", "guidance", "revision")),
        "failed": lambda row: row["failure"] or row["masked"],
    }[box]
    choose(guided, "#file", "training")
    rows = [row for step in range(1, 41) for row in rows_of(runs, "guided", f"step_{step:06d}")]
    guided.click(f"#{box}")
    assert position(guided).endswith(f"of {sum(bool(test(row)) for row in rows)}")
    word = {"leak": "leak", "truncated": "truncated", "failed": "failed: guide: TimeoutError"}[box]
    assert all(word in text for text in guided.texts("article"))


def test_filter_by_step_and_text(guided, runs):
    choose(guided, "#file", "4")  # two evaluations come first, so this is step 3
    assert position(guided) == "1–10 of 32" and all("step 3," in text for text in guided.texts("article header"))
    rows = rows_of(runs, "guided", "step_000003")
    expected = sum(row["guidance"] is not None and "redo the tens" in row["guidance"]["text"] for row in rows)
    guided.type("#search", "REDO the tens")
    guided.wait(lambda: position(guided).endswith(f" {expected}"), f"{expected} matches")
    guided.type("#search", " nowhere")
    guided.wait(lambda: position(guided) == "none", "no match")
    assert guided.texts(".trajectory-list") == ["No trajectory fits these filters."]


def test_changed_words_are_marked(guided):
    guided.click('#outcome label:has(input[value="i2c"])')
    last = "article:last-of-type"
    attempt, revision = (guided.texts(f"{last} .turn .sample")[i].split() for i in (0, 2))
    changed = [(a, b) for a, b in zip(attempt, revision, strict=True) if a != b]
    assert len(changed) == 1  # one digit is mended
    assert [(guided.texts(f"{last} del")[0], guided.texts(f"{last} ins")[0])] == changed


def test_paging(guided):
    assert position(guided) == "1–10 of 120" and len(guided.texts("article")) == 10
    first = guided.texts("article")
    guided.click(".pager .next")
    assert position(guided) == "11–20 of 120" and not set(first) & set(guided.texts("article"))
    guided.click(".pager .previous")
    assert guided.texts("article") == first
    for _ in range(11):
        guided.click(".pager .next")
    assert position(guided) == "111–120 of 120"
    assert guided.run("return document.querySelector('.pager .next').disabled")


def test_difference_marks_the_longest_common_words(guided):
    """The page's own function, on cases worked out by hand; changed pieces are in brackets."""
    source = (Path(render.__code__.co_filename).parent / "assets" / "difference.js").read_text()
    cases = {
        ("a b c", "a x c"): ("a [b] c", "a [x] c"),
        ("a b c d", "a d"): ("a [b c] d", "a d"),
        ("", "new words"): ("", "[new words]"),
        ("same text", "same text"): ("same text", "same text"),
        ("x = 1\ny = 2", "x = 1\nz = 0\ny = 2"): ("x = 1\ny = 2", "x = 1\n[z = 0]\ny = 2"),
    }
    script = source + (
        "return difference(arguments[0], arguments[1]).map((side) => "
        "side.map((piece) => piece.changed ? `[${piece.text}]` : piece.text).join(''))"
    )
    for (a, b), expected in cases.items():
        assert tuple(guided.run(script, a, b)) == expected


def test_theme_switch(guided):
    ground = "return getComputedStyle(document.body).backgroundColor"
    before, label = guided.run(ground), guided.texts("#theme")[0]
    guided.click("#theme")
    assert guided.run(ground) != before and guided.texts("#theme")[0] != label


def test_several_runs_share_axes_and_have_a_colour_each(browser, runs):
    browser.resize(1280, 900)
    browser.open(write_page(runs, "guided", "smart", "short"))
    assert browser.complaints() == []
    strokes = "return [...new Set([...document.querySelectorAll(arguments[0])].map((p) => p.style.stroke))]"
    assert browser.run(strokes, f"{CHART} .line") == ["var(--c0)", "var(--c1)", "var(--c2)"]
    assert len(browser.texts(f"{CHART} .plot svg")) == 1
    browser.click("#runs-shown label:nth-of-type(2)")
    assert browser.run(strokes, f"{CHART} .line") == ["var(--c0)", "var(--c2)"]
    assert len(browser.texts(".compare thead th")) == 4
    choose(browser, "#run", "2")
    assert "before training" in browser.texts("article header")[0]  # all that an unfinished run has evaluated


def test_nothing_is_wider_than_a_phone(browser, runs):
    browser.resize(390, 844)
    for page in (write_page(runs, "guided"), write_page(runs, "guided", "smart", "short")):
        browser.open(page)
        assert browser.run("return document.documentElement.scrollWidth") == 390
        place = "return [...document.querySelectorAll('article .turn')].slice(0, 3).map((turn) => turn.offsetLeft)"
        turns = browser.run(place)
        assert len(set(turns)) == 1  # one below the other
        hint = browser.run("return document.querySelector('.hints th.sample').offsetWidth")
        assert hint > 100  # wide enough to read words in
        charts = browser.run(
            "return [...document.querySelectorAll('.chart svg:not(.key)')].map((s) => s.getBoundingClientRect().right)"
        )
        assert charts and max(charts) <= 390


def test_twenty_thousand_trajectories_stay_quick(browser, tmp_path):
    folder = make_run(tmp_path / "large", steps=10, per_step=50, num_eval=50)
    for path in (folder / "trajectories").glob("step_*.jsonl"):
        rows = [json.loads(line) for line in path.open()]
        copies = [{**row, "problem_id": f"{row['problem_id']}-{copy}"} for copy in range(40) for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in copies))
    page = write_page(tmp_path, "large")
    assert page.stat().st_size < 3e6
    browser.resize(1280, 900)
    browser.open(page)
    assert "holds 20,000 of the run's 20,100 trajectories" in browser.texts(".hint-line")[0]
    choose(browser, "#file", "all")
    assert position(browser) == "1–10 of 20,000"
    milliseconds = browser.run(
        "const start = performance.now();"
        "document.querySelector('#outcome input[value=i2c]').click();"
        "document.body.getBoundingClientRect(); return performance.now() - start"
    )
    assert milliseconds < 1000, "a filter over 20,000 trajectories should answer at once"
    shutil.rmtree(folder)
