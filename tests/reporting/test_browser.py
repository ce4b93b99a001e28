"""The page in a browser, wide and narrow, light and dark: nothing is wider than the screen, and everything answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reporting.synthetic import make_run

from mmpareto.reporting import page
from mmpareto.reporting.finished import find
from mmpareto.reporting.summary import summaries

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
WIDTHS = {1280: 900, 400: 800}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all figures but those of sweeps, of eleven rows with long names on two datasets."""
    folder = tmp_path_factory.mktemp("browser")
    for dataset in ("digits", "cgmnist"):
        for place, method in enumerate(["uniform", "mmpareto", *(f"a_long_name_of_a_method_{n}" for n in range(9))]):
            for seed in range(2):
                run = make_run(
                    folder / dataset / f"{method}{seed}", method, seed, 60.0 + 3 * place + seed, dataset=dataset
                )
                results = json.loads((run / "results.json").read_text()) | {"seconds": 9.0 + place}
                (run / "results.json").write_text(json.dumps(results))
                evaluation = {
                    "finished": True,
                    "selected_epoch": 3,
                    "joint": {"confusion": [[3, 1], [1, 4]], "per_class": [{"class": "cat"}, {"class": "dog"}]},
                    "subsets": [{"present": ["gray", "colour"], "accuracy": 60.0}],
                    "missing_rates": [{"modality": "gray", "rate": rate, "accuracy": 50.0} for rate in (0.5, 1.0)],
                }
                (run / "evaluation_test.json").write_text(json.dumps(evaluation))
                lines = [f"1,gray,{layer}.weight,4,0.{layer + 1},0.1" for layer in range(3)]
                header = "epoch,encoder,layer,steps,conflict_rate,mean_cosine"
                (run / "layers.csv").write_text("\n".join([header, *lines]) + "\n")
    page.write(folder / "report", summaries(find([folder])[0]), [])
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def problems() -> list[str]:
    return []


def opened(browser: Any, report: Path, width: int, theme: str, problems: list[str]) -> Any:
    """The page with every figure drawn; problems: its errors, and what it tries to load."""
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=theme)
    tab = context.new_page()
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    tab.goto(report.as_uri())
    for figure in tab.query_selector_all("figure"):
        figure.scroll_into_view_if_needed()
    tab.wait_for_function(
        "document.querySelectorAll('.panel.drawn svg').length === document.querySelectorAll('.panel').length"
    )
    return tab


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(
    browser: Any, report: Path, tmp_path: Path, problems: list[str], width: int, theme: str
) -> None:
    tab = opened(browser, report, width, theme, problems)
    for details in tab.query_selector_all("details"):
        details.evaluate("element => (element.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll('main *, header *')].filter((element) => !element.closest('.scroll, svg') &&
        element.getBoundingClientRect().right > innerWidth).map((element) => element.outerHTML)"""
    assert tab.evaluate(wide) == []
    if width == 400:  # the tables, too, are no wider
        inside = "[...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
        assert tab.evaluate(inside) == 0
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(background.replace("rgb(", "[").replace(")", "]"))) < 200) == (theme == "dark")
    tab.screenshot(path=tmp_path / f"{width}-{theme}.png", full_page=True)
    assert (tmp_path / f"{width}-{theme}.png").stat().st_size > 50_000
    assert problems == []


def test_tables_figures_and_themes_answer(browser: Any, report: Path, tmp_path: Path, problems: list[str]) -> None:
    tab = opened(browser, report, 1280, "light", problems)
    table = tab.locator("section#digits table").first
    joint = table.locator("th button", has_text="joint").first
    cells = "td[data-label=joint]"
    best_first = table.locator(cells).all_text_contents()
    joint.click()
    assert table.locator(cells).all_text_contents() == sorted(best_first, reverse=True) == best_first
    joint.click()
    assert table.locator(cells).all_text_contents() == best_first[::-1]

    figure = tab.locator("#digits-joint-accuracy")
    names = figure.locator(".mark-text.role-axis-label text")
    assert names.filter(has_text="a_long_name").count() == 8
    box = tab.locator("form[data-section=digits] .chips input").first
    best = tab.locator("form[data-section=digits] .chips label").first.text_content()
    assert names.filter(has_text=best).count() == 1
    box.evaluate("element => element.click()")
    assert names.filter(has_text=best).count() == 0

    curve = tab.locator("#digits-learning-curves .panel").first
    figure_names = tab.locator("form[data-section=digits] .chips label").all_text_contents()
    for seeds, said in (
        (False, ["method", "epoch", "mean", "± deviation", "seeds"]),
        (True, ["method", "run", "seed"]),
    ):
        tab.locator("form[data-section=digits] .seeds").set_checked(seeds)
        points = curve.locator(".mark-symbol path[aria-roledescription=point]")
        points.nth(points.count() // 2).hover(force=True)
        tooltip = tab.locator("#vg-tooltip-element.visible")
        tooltip.wait_for()
        assert tooltip.locator(".key").all_text_contents()[: len(said)] == said
        method, second, *_ = tooltip.locator(".value").all_text_contents()
        assert method in figure_names
        assert not seeds or second.startswith(f"digits/{method}")
        tab.mouse.move(5, 5)

    for kind, start in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with tab.expect_download() as download:
            figure.locator(f"[data-download={kind}]").click()
        download.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_bytes().startswith(start)
        assert download.value.suggested_filename == f"digits-joint-accuracy.{kind}"
    assert best not in (tmp_path / "svg").read_text()  # as it is switched
    with tab.expect_download() as download:
        figure.locator("a[download]").click()
    download.value.save_as(tmp_path / "pdf")
    assert (tmp_path / "pdf").read_bytes() == (report.parent / "figures" / "digits-joint-accuracy.pdf").read_bytes()

    tab.locator("[id='--theme']").click()
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert problems == []


def test_lines_of_a_sweep_have_switches_in_their_figure(browser: Any, tmp_path: Path, problems: list[str]) -> None:
    for method in ("uniform", "mmpareto"):
        for rate in (0.1, 0.2, 0.4):
            make_run(tmp_path / "runs" / f"{method}{rate}", method, 0, 50.0 + 10 * rate, learning_rate=rate)
    page.write(tmp_path / "report", summaries(find([tmp_path / "runs"])[0]), [])
    tab = opened(browser, tmp_path / "report" / "index.html", 1280, "light", problems)
    figure = tab.locator("#digits-over-learning_rate")
    assert figure.locator(".chips label").all_text_contents() == ["uniform", "mmpareto"]
    points = figure.locator(".panel").first.locator(".mark-symbol path[fill='transparent']")
    assert points.count() == 6
    figure.locator(".chips input").first.evaluate("element => element.click()")
    tab.wait_for_timeout(300)
    assert points.count() == 3
    assert figure.locator(".role-legend").count() == 0
    tab.screenshot(path=tmp_path / "sweep.png", full_page=True)
    assert problems == []
