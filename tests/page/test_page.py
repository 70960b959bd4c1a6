"""The report's page in a real browser: what a reader sees, points at and clicks. `make test-page` runs these tests."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from support.campaigns import make_campaign
from support.waiting import wait

from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.report import write_page
from hpo_cluster.space import Categorical, Float, Integer, Space

SCRIPT = "</script><script>window.obeyed = 1</script><img src=x onerror='window.obeyed = 2'>"
FORMULA = r"$\frac{1}{2}$ $$\frac{1}{2}$$"
SPACE = Space(
    {"rate": Float(1e-5, 1e-1, log=True), "layers": Integer(1, 8), "kind": Categorical((SCRIPT, FORMULA, "plain"))}
)
OBJECTIVE = {"kind": "command", "command": "train {rate} {layers} {kind}", "metric": "score", "direction": "maximize"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program, "chromium is missing: tests/page/install"
    assert driver, "chromedriver is missing: tests/page/install"
    options = ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a campaign with all kinds of ends, whose words would be obeyed if they were not escaped."""
    random = np.random.default_rng(0)
    trials: list[dict[str, Any]] = []
    for number in range(24):
        parameters = SPACE.decode(random.random(3))
        score = float(-((np.log10(parameters["rate"]) + 3) ** 2)) + 0.1 * float(parameters["layers"])
        end: dict[str, Any] = {
            "state": "completed",
            "value": score,
            "metrics": {"score": score, "seconds": number + 1.0},
        }
        if number % 6 == 4:
            end = {"state": "failed", "error": {"kind": "code", "message": f"{SCRIPT} {FORMULA}\nsecond line"}}
        trials.append({"number": number, "parameters": parameters, "gpus": 1, "end": end})
    trials.append({"number": 24, "parameters": SPACE.decode(random.random(3)), "gpus": 1})
    folder = make_campaign(tmp_path_factory.mktemp("c") / "a <i>b $$x$$", OBJECTIVE, SPACE, trials, "maximize")
    files = CampaignLayout(folder).attempt(4, 0)
    files.job_dir.mkdir(parents=True)
    (files.job_dir / "1_0_log.err").write_text(f"first\n{SCRIPT}\nlast words")
    return write_page(folder)


def opened(browser: Chrome, page: Path, *, dark: bool = False) -> Chrome:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(page.as_uri())
    wait(lambda: browser.execute_script("return document.body.dataset.drawn === 'yes'"))
    wait(lambda: browser.execute_script("return Bokeh.documents.every((document) => document.is_idle)"))
    return browser


def severe(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def cells(browser: Chrome, column: int) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr")
    return [row.find_elements(By.TAG_NAME, "td")[column].text for row in rows]


def on_screen(browser: Chrome, section: str) -> tuple[int, dict[str, float]]:
    """Return the number of a completed trial that a figure shows, and where its marker is in the window."""
    return tuple(  # type: ignore[return-value]
        browser.execute_script(
            """
            const section = document.getElementById(arguments[0]);
            section.scrollIntoView();
            for (const view of Bokeh.index.roots) {
              if (view.model.type !== "Figure" || !section.contains(view.el)) continue;
              const isMark = (mark) => mark.glyph.type === "Scatter" && mark.data_source.data.trial;
              const data = view.model.renderers.find(isMark).data_source.data;
              const at = view.el.getBoundingClientRect();
              const x = at.left + view.frame.x_scale.compute(data.x[2]);
              const y = at.top + view.frame.y_scale.compute(data.y[2]);
              return [data.trial[2], { x, y }];
            }
            """,
            section,
        )
    )


DEEP = """
const texts = [];
const walk = (node) => {
  for (const child of node.querySelectorAll("*")) {
    if (child.shadowRoot) walk(child.shadowRoot);
    if (!child.matches("[class*=ooltip]")) continue;
    texts.push(child.textContent + (child.shadowRoot ? child.shadowRoot.textContent : ""));
  }
};
walk(document);
return texts.join("\\n");
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_from_disk_without_an_error_or_the_network(browser: Chrome, page: Path, dark: bool) -> None:
    opened(browser, page, dark=dark)
    assert severe(browser) == []
    assert browser.execute_script("return window.obeyed") is None
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert browser.title == "Campaign a <i>b $$x$$"
    assert browser.execute_script("return document.documentElement.classList.contains('dark')") is dark
    sections = [section.get_attribute("id") for section in browser.find_elements(By.TAG_NAME, "section")]
    for name in ("trials", "best_by_evaluations", "best_by_gpu_hours", "parameters", "timeline", "failures", "costs"):
        assert name in sections
    figures = "return [...Bokeh.index.roots].filter((view) => view.model.type === 'Figure')"
    heights = browser.execute_script(f"{figures}.map((view) => view.el.clientHeight)")
    assert len(heights) > 10
    assert min(heights) > 50


def test_the_colours_follow_the_system_the_button_and_the_printer(browser: Chrome, page: Path) -> None:
    def seen() -> tuple[str, str, str]:
        return tuple(  # type: ignore[return-value]
            browser.execute_script(
                """
                const axis = [...Bokeh.documents[0].all_models].find((model) => model.type.endsWith("Axis"));
                const style = getComputedStyle(document.body);
                return [style.backgroundColor, style.color, axis.major_label_text_color];
                """
            )
        )

    opened(browser, page, dark=True)
    dark = seen()
    assert luminance(dark[0]) < 0.05
    assert contrast(dark[0], dark[1]) > 7
    browser.find_element(By.ID, "theme").click()
    light = seen()
    assert luminance(light[0]) > 0.9
    assert contrast(light[0], light[1]) > 7
    assert light[2] != dark[2]
    browser.find_element(By.ID, "theme").click()
    assert seen() == dark
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert seen()[:2] == light[:2]
    assert browser.execute_script("return document.documentElement.className") == "inverted"
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert seen() == dark


def luminance(colour: str) -> float:
    shares = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_confirmations_follow_the_trials_in_their_order(browser: Chrome, tmp_path: Path) -> None:
    end = {"state": "completed", "value": 1.0, "metrics": {"score": 1.0}}
    trials = [{"number": number, "parameters": SPACE.decode([0.5] * 3), "end": end} for number in (0, 1, -2, -3)]
    for trial in trials[2:]:
        trial["info"] = {"confirms": 0, "replicate": -2 - trial["number"]}
    opened(browser, write_page(make_campaign(tmp_path / "c", OBJECTIVE, SPACE, trials, "maximize")))
    assert [cell[:5] for cell in cells(browser, 0)] == ["t0000", "t0001", "c0001", "c0002"]


def test_the_table_sorts_and_is_filtered(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert cells(browser, 0)[:3] == ["t0000", "t0001", "t0002"]
    heading = browser.find_elements(By.CSS_SELECTOR, "#table th")[2]
    assert heading.text == "score"
    heading.click()
    values = [float(text) for text in cells(browser, 2) if text]
    assert len(values) == 20
    assert values == sorted(values)
    assert cells(browser, 2)[-5:] == [""] * 5  # without a value: last
    heading.click()
    assert [float(text) for text in cells(browser, 2) if text] == values[::-1]
    assert cells(browser, 2)[-5:] == [""] * 5
    browser.find_element(By.CSS_SELECTOR, "#filter option[value=failed]").click()
    assert cells(browser, 1) == ["failed"] * 4
    assert "4 of 4" in browser.find_element(By.ID, "count").text
    assert severe(browser) == []


def test_a_click_on_a_row_shows_parameters_error_and_log_as_text(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    browser.find_element(By.CSS_SELECTOR, "#table tr[data-trial='4']").click()
    dialog = browser.find_element(By.ID, "details")
    assert dialog.is_displayed()
    said = dialog.get_attribute("textContent") or ""
    assert said.startswith("Closet0004")
    for part in ("rate", "layers", "kind", f"code: {SCRIPT} {FORMULA}\nsecond line", f"{SCRIPT}\nlast words"):
        assert part in said
    dialog.find_element(By.TAG_NAME, "button").click()
    assert not dialog.is_displayed()
    assert browser.execute_script("return window.obeyed") is None
    assert severe(browser) == []


@pytest.mark.parametrize("section", ["best_by_evaluations", "parameters"])
def test_the_pointer_and_a_click_on_a_marker_show_its_trial(browser: Chrome, page: Path, section: str) -> None:
    opened(browser, page)
    trial, _ = on_screen(browser, section)
    time.sleep(0.3)  # the page has scrolled
    trial, place = on_screen(browser, section)
    ActionChains(browser).move_by_offset(1, 1).perform()
    mouse = ActionChains(browser)
    mouse.w3c_actions.pointer_action.move_to_location(round(place["x"]) - 1, round(place["y"]))
    mouse.w3c_actions.pointer_action.move_to_location(round(place["x"]), round(place["y"]))
    mouse.perform()
    label = f"t{trial:04d}"
    said = wait(lambda: text if label in (text := browser.execute_script(DEEP)) else "", 10)
    assert "state: completed" in said
    assert "kind: " in said
    assert "score: " in said
    mouse.w3c_actions.pointer_action.click()
    mouse.perform()
    dialog = browser.find_element(By.ID, "details")
    wait(dialog.is_displayed, 10)
    assert dialog.find_element(By.TAG_NAME, "h3").text == label
    assert browser.execute_script("return window.obeyed") is None
    assert severe(browser) == []


@pytest.mark.parametrize("ended", [0, 1])
def test_none_and_one_trial(browser: Chrome, tmp_path: Path, ended: int) -> None:
    end = {"state": "completed", "value": 1.0, "metrics": {"score": 1.0}}
    trials = [{"number": i, "parameters": SPACE.decode([0.5] * 3), "gpus": 1, "end": end} for i in range(ended)]
    opened(browser, write_page(make_campaign(tmp_path / "small", OBJECTIVE, SPACE, trials, "maximize")))
    assert severe(browser) == []
    assert len(cells(browser, 0)) == ended
