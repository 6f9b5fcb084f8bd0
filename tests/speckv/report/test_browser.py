# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, from the disk: nothing fetched, nothing complained of, everything by keyboard."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.curves import Curve, Point
from speckv.report.page import render_page
from tests.fakes_report import HOSTILE, made, toy_content

pytest.importorskip("selenium", reason="needs selenium, of the test extra")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Chromium and its driver (Debian: chromium, chromium-driver)"
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    def point(step: int, value: float) -> Point:
        interval = Interval(estimate=value, low=value - 0.1, high=value + 0.1)
        over = dict.fromkeys(("fp16", "nf4", "all"), interval)
        return Point(step=step, over_best_fixed=over, drafted_per_step=3.0)

    curve = Curve(num_prompts=4, points=(point(0, 0.8), point(1000, 1.1), point(2000, 1.05)))
    content = toy_content(made("svip", "gammatune"), curve=curve)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(content), encoding="utf-8")
    return path, content


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def opened(chromium: webdriver.Chrome, page: tuple[Path, dict[str, Any]]) -> webdriver.Chrome:
    """The page as somebody opens it who prefers light, with nothing logged before."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    prefer(chromium, "light")
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    chromium.get(page[0].as_uri())
    return chromium


def prefer(driver: webdriver.Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def by_id(driver: webdriver.Chrome, name: str) -> WebElement:
    return driver.find_element(By.ID, name)


def texts(driver: webdriver.Chrome, selector: str) -> list[str]:
    return [str(e.get_property("textContent")) for e in driver.find_elements(By.CSS_SELECTOR, selector)]


def complaints(driver: webdriver.Chrome) -> list[str]:
    return [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")]


def requested(driver: webdriver.Chrome) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.mark.slow
def test_it_opens_from_the_disk_fetches_nothing_and_runs_no_text(
    opened: webdriver.Chrome, page: tuple[Path, dict[str, Any]]
) -> None:
    path, content = page
    assert by_id(opened, "verdict").text == content["verdict"]
    assert complaints(opened) == []
    assert [url for url in requested(opened) if not url.startswith("data:")] == [path.as_uri()]
    assert opened.execute_script("return typeof window.hacked") == "undefined"
    assert str(by_id(opened, "prompt-text").get_property("textContent")) == HOSTILE
    assert opened.find_elements(By.CSS_SELECTOR, "main img, main b") == []
    assert len(opened.find_elements(By.CSS_SELECTOR, "#curves .curve")) == 2
    assert len(opened.find_elements(By.CSS_SELECTOR, "#gammas figure")) == 3
    assert len(opened.find_elements(By.CSS_SELECTOR, "#headroom .diamond")) == 3


@pytest.mark.slow
def test_every_column_sorts_by_keyboard_and_by_click_and_says_so(
    opened: webdriver.Chrome, page: tuple[Path, dict[str, Any]]
) -> None:
    _, content = page
    listed = texts(opened, "#table tbody th")
    assert len(listed) == len(content["listed"])
    keys = [str(b.get_attribute("data-key")) for b in opened.find_elements(By.CSS_SELECTOR, "#table thead button")]
    assert len(keys) == 9
    for column, key in enumerate(keys):

        def header(key: str = key) -> WebElement:
            return opened.find_element(By.CSS_SELECTOR, f'#table button[data-key="{key}"]')

        def state(key: str = key) -> str:
            return str(header(key).find_element(By.XPATH, "..").get_attribute("aria-sort"))

        assert state() == "none"
        header().send_keys(Keys.ENTER)
        first = state()
        assert first == ("ascending" if key == "controller" else "descending")
        assert opened.switch_to.active_element.get_attribute("data-key") == key
        down = [cell for cell in column_of(opened, column) if cell]
        header().click()
        assert {first, state()} == {"ascending", "descending"}
        up = [cell for cell in column_of(opened, column) if cell]
        assert sorted(up) == sorted(down)
        if key != "controller":
            numbers = [float(cell.split()[0]) for cell in down]
            assert numbers == sorted(numbers, reverse=True)
            assert [float(cell.split()[0]) for cell in up] == sorted(numbers)
        else:
            assert down == up[::-1]
        others = texts(opened, '#table th[aria-sort="none"]')
        assert len(others) == len(keys) - 1
    assert sorted(texts(opened, "#table tbody th")) == sorted(listed)
    assert complaints(opened) == []


def column_of(driver: webdriver.Chrome, column: int) -> list[str]:
    return texts(driver, f"#table tbody tr > :nth-child({column + 1})")


def test_verdicts_stand_as_in_the_text_table(opened: webdriver.Chrome, page: tuple[Path, dict[str, Any]]) -> None:
    parts = page[1]["verdicts"]["parts"]
    assert texts(opened, "#verdicts h3") == [where for where, _ in parts]
    assert texts(opened, "#verdicts li") == [said for _, lines in parts for _, said in lines]
    assert [e.get_attribute("class") for e in opened.find_elements(By.CSS_SELECTOR, "#verdicts li")] == [
        {"ahead of": "ahead", "behind": "behind", "not distinguishable from": "not", "": "first"}[word]
        for _, lines in parts
        for word, _ in lines
    ]


def test_choices_of_compression_task_and_constants_change_the_table(
    opened: webdriver.Chrome, page: tuple[Path, dict[str, Any]]
) -> None:
    _, content = page
    Select(by_id(opened, "compression")).select_by_value("nf4")
    Select(by_id(opened, "task")).select_by_value("code")
    (group,) = [g for g in content["comparison"]["groups"] if (g["compression"], g["task"]) == ("nf4", "code")]
    assert by_id(opened, "table-note").text.startswith(f"{group['num_prompts']} test prompts")
    shown = dict(zip(column_of(opened, 0), column_of(opened, 3), strict=True))
    for row in group["rows"]:
        if row["controller"] in ("svip", "gammatune"):
            value = row["speedup_vs_best_fixed"]
            bounds = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
            assert shown[row["controller"]] == f"{value['estimate']:.3f}{bounds}"
    by_id(opened, "every").click()
    assert len(column_of(opened, 0)) == len(group["rows"])
    assert len(opened.find_elements(By.CSS_SELECTOR, "#table .whisker .reference")) == len(group["rows"])


def test_the_timeline_steps_by_key_button_and_slider(
    opened: webdriver.Chrome, page: tuple[Path, dict[str, Any]]
) -> None:
    _, content = page
    timeline = content["timeline"]
    sequence = timeline["sequences"][0]
    walk = sequence["walks"][1]

    def expect(index: int) -> None:
        position, emitted, choices, rejected = walk[index]
        assert by_id(opened, "step-number").text == f"Step {index + 1} of {len(walk)}"
        kept = "".join(words or "…" for words in sequence["texts"][: position + emitted])
        found = texts(opened, "#text .token:not(.rejected)")
        assert "".join(found) == kept
        assert texts(opened, "#text del") == [words or "…" for words, _ in rejected]
        _, drafted, accepted, _ = choices[1]
        assert len(texts(opened, "#now .accepted")) == accepted
        assert f"drafted {drafted}" in by_id(opened, "said").text
        assert [int(cell) for cell in texts(opened, "#choices .gamma")] == [choice[0] for choice in choices]
        assert texts(opened, "#choices tbody tr > :nth-child(3)") == [f"{a} of {d}" for _, d, a, _ in choices]
        assert len(opened.find_elements(By.CSS_SELECTOR, "#lanes .here")) == len(timeline["players"])

    expect(0)
    region = by_id(opened, "text")
    region.send_keys(Keys.ARROW_RIGHT)
    expect(1)
    region.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    expect(0)
    region.send_keys(Keys.END)
    expect(len(walk) - 1)
    assert by_id(opened, "next").get_attribute("aria-disabled") == "true"
    by_id(opened, "back").click()
    expect(len(walk) - 2)
    by_id(opened, "step").send_keys(Keys.ARROW_LEFT)
    expect(len(walk) - 3)
    assert by_id(opened, "step").get_attribute("aria-valuetext") == f"step {len(walk) - 2} of {len(walk)}"
    by_id(opened, "first").send_keys(Keys.SPACE)
    expect(0)
    assert complaints(opened) == []


def test_another_controller_or_compression_stays_at_the_same_token(
    opened: webdriver.Chrome, page: tuple[Path, dict[str, Any]]
) -> None:
    _, content = page
    sequence = content["timeline"]["sequences"][0]
    by_id(opened, "text").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    position = sequence["walks"][1][2][0]
    Select(by_id(opened, "player")).select_by_value("0")
    walk = sequence["walks"][0]
    index = next(k for k, (start, emitted, *_) in enumerate(walk) if start <= position < start + emitted)
    assert by_id(opened, "step-number").text == f"Step {index + 1} of {len(walk)}"
    Select(by_id(opened, "prompt-compression")).select_by_value("nf4")
    assert by_id(opened, "step-number").text.endswith(f"of {len(content['timeline']['sequences'][1]['walks'][0])}")
    Select(by_id(opened, "prompt")).select_by_index(2)
    assert by_id(opened, "step-number").text.startswith("Step 1 of")
    assert Select(by_id(opened, "prompt-compression")).first_selected_option.text == "nf4"


def background(driver: webdriver.Chrome) -> str:
    return str(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))


def test_dark_follows_the_reader_and_the_button(opened: webdriver.Chrome) -> None:
    light = background(opened)
    button = by_id(opened, "theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.send_keys(Keys.SPACE)
    dark = background(opened)
    assert dark != light
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert background(opened) == light
    opened.refresh()
    prefer(opened, "dark")
    assert background(opened) == dark
    assert by_id(opened, "theme").get_attribute("aria-pressed") == "true"
    by_id(opened, "theme").click()
    assert background(opened) == light


def test_tab_reaches_everything_shows_where_it_is_and_gets_out_again(opened: webdriver.Chrome) -> None:
    body = opened.find_element(By.TAG_NAME, "body")
    met: list[str] = []
    outlined: list[bool] = []
    for _ in range(60):
        active = opened.switch_to.active_element
        active.send_keys(Keys.TAB)
        active = opened.switch_to.active_element
        if active == body:
            break
        met.append(str(active.get_attribute("id") or active.get_attribute("data-key") or active.tag_name))
        outlined.append(opened.execute_script("return getComputedStyle(arguments[0]).outlineStyle", active) != "none")
    expected = ["theme", "compression", "task", "every", "table", "controller", "share", "prompt", "player", "step"]
    expected += ["first", "back", "next", "last", "text", "choices-box"]
    assert set(expected) <= set(met)
    assert all(outlined)
    assert len(met) == len(set(met) - {"summary"}) + met.count("summary")
    unlabelled = opened.execute_script(
        "return [...document.querySelectorAll('select, input, button, [role=region], svg[role=img]')].filter(e =>"
        " !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute('aria-label')"
        " && !e.getAttribute('aria-labelledby')).map(e => e.outerHTML)"
    )
    assert unlabelled == []


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_is_wider_than_the_screen(opened: webdriver.Chrome, width: int) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    opened.refresh()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    charts = (
        "return [...document.querySelectorAll('.chart svg, .panels svg')].map(e => e.getBoundingClientRect().right)"
    )
    assert max(opened.execute_script(charts)) <= width
    assert complaints(opened) == []


def test_it_can_be_looked_at_in_light_and_dark(opened: webdriver.Chrome, tmp_path: Path) -> None:
    pictures = []
    for name in ("light", "dark"):
        path = tmp_path / f"{name}.png"
        assert opened.save_screenshot(str(path))
        pictures.append(imread(path)[..., :3])
        by_id(opened, "theme").click()
    light, dark = pictures
    assert light.shape == dark.shape
    assert light.mean() > 0.8
    assert dark.mean() < 0.3
    assert light.std() > 0.02
