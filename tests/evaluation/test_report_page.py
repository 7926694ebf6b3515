"""The page in a browser: one session of headless Chromium for all checks; skipped where there is none."""

import json
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from walrus_hf.evaluation.report import write_report
from walrus_hf.panels import colour_map

from .small_results import HOSTILE, HOSTILE_FIELD, truth_at, write_results

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"
)
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")  # the driver is on this machine
        session = webdriver.Chrome(options=options, service=Service(DRIVER))  # named, so that nothing is downloaded
        yield session
        session.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = folder / "run"
    run.mkdir()
    rows = [{"step": step, "loss": 1 / step, "losses": {HOSTILE: 2 / step}} for step in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_report([write_results(folder / "evaluation")], folder / "report.html", training=[run]).as_uri()


@pytest.fixture
def page(browser, address):
    """Loaded anew; no test may leave an error on the console, ask for anything but the page, or run a name."""
    size(browser, 1200, 900)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)
    loaded(browser)
    yield browser
    assert browser.title == "Evaluation of forecasts"
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:image/png;base64,")} <= {address, "data:,"}


def size(browser, width, height, dark=False):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def choose(page, menu, value):
    options = Select(page.find_element(By.ID, menu)).options
    next(option for option in options if option.get_attribute("value") == value).click()


def column(page, table, number):
    """First lines of the cells of a column."""
    cells = page.find_elements(By.CSS_SELECTOR, f"#{table} tbody td:nth-child({number})")
    return [cell.text.split("\n")[0] for cell in cells]


def head(page, table, number):
    return page.find_element(By.CSS_SELECTOR, f"#{table} thead th:nth-child({number}) button")


def text(page, name):
    return page.find_element(By.ID, name).text


def test_hostile_names_are_shown_as_they_are_and_do_nothing(page):
    assert HOSTILE in text(page, "overview")
    assert text(page, "scenario-title") == f"{HOSTILE} (Planes of Old)"
    assert HOSTILE in text(page, "notes")
    choose(page, "field", HOSTILE_FIELD)
    assert HOSTILE_FIELD in text(page, "table-title")
    assert HOSTILE_FIELD in text(page, "film-title")
    assert HOSTILE in text(page, "training-chart")
    assert not page.find_elements(By.TAG_NAME, "img")
    assert page.title == "Evaluation of forecasts"


def test_tables_show_intervals_failures_notes_and_published_numbers(page):
    published = ["Walrus, Table 1 (published)", "DPOT-H, Table 1 (published)"]
    assert column(page, "table", 1) == ["model", "persistence", "u net", *published]
    assert column(page, "table", 2) == ["0.1", "0.2", "0.05", "0.02", "\u2013"]
    assert column(page, "table", 3) == ["0.3", "0.6", "∞", "\u2013", "0.2"]
    assert [cell.text for cell in page.find_elements(By.CSS_SELECTOR, "#table td.best")] == [
        "0.3\n[0.24, 0.36]", "0.05\n[0.04, 0.06]",
    ]  # fmt: skip
    cells = page.find_elements(By.CSS_SELECTOR, "#table tbody td:nth-child(3)")
    assert [cell.text.split("\n")[1:] for cell in cells] == [
        ["[0.24, 0.36]"],
        ["[0.48, 0.72]"],
        ["2 of 3 failed"],
        [],
        [],
    ]
    summary = "cells (x periodic, y periodic), 3 trajectories, forecast from frame 17, 6 steps of 0.5 simulation units."
    assert text(page, "summary") == f"12 \u00d7 8 {summary}"
    assert "start moved from 19 to 17" in text(page, "notes")
    assert "u_net, trajectory 1: failed at step 4" in text(page, "notes")
    assert "Published: Walrus, Table 1, steps 1:20: 0.5 (as read)" in text(page, "remarks")
    assert "Published: Walrus, Table 7, whole trajectory: 0.7" in text(page, "remarks")
    assert "Published: Poseidon-L, Table 1, steps 1:5: \u2013 (lost)" in text(page, "remarks")
    assert "Walrus, Table 1 (published)" in text(page, "overview")
    assert "DPOT-H" not in text(page, "overview")
    assert "95 % bootstrap intervals" in text(page, "remarks")
    choose(page, "statistic", "mean")
    assert column(page, "table", 2) == ["0.11", "0.22", "0.055"]
    assert "Published numbers are medians" in text(page, "remarks")


def test_a_click_sorts_and_a_second_one_turns_the_order(page):
    head(page, "overview", 3).click()
    rising = column(page, "overview", 3)
    assert rising == ["0.02", *["0.05"] * 3, *["0.1"] * 3, *["0.2"] * 3, "\u2013"]
    header = page.find_element(By.CSS_SELECTOR, "#overview thead th:nth-child(3)")
    assert header.get_attribute("aria-sort") == "ascending"
    head(page, "overview", 3).click()
    assert column(page, "overview", 3) == [*rising[-2::-1], "\u2013"]  # what is missing always comes last
    assert header.get_attribute("aria-sort") == "descending"
    head(page, "overview", 4).click()
    assert column(page, "overview", 4) == [*["0.3"] * 3, *["0.6"] * 3, *["∞"] * 3, "\u2013", "\u2013"]
    assert header.get_attribute("aria-sort") is None


def test_all_works_by_keyboard(page):
    head(page, "table", 2).send_keys(Keys.ENTER)
    assert column(page, "table", 2) == ["0.02", "0.05", "0.1", "0.2", "\u2013"]
    head(page, "table", 1).send_keys(Keys.SPACE)
    assert column(page, "table", 1)[1:4] == ["model", "persistence", "u net"]
    page.find_element(By.ID, "frame").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert text(page, "frame-text") == "lead time 1.5 simulation units (step 3)"
    page.find_element(By.CSS_SELECTOR, "#error-chart .chart").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "model 0.2" in text(page, "error-chart")
    play = page.find_element(By.ID, "play")
    play.send_keys(Keys.ENTER)
    assert play.text == "Pause"
    play.send_keys(Keys.ENTER)
    assert (play.text, play.get_attribute("aria-pressed")) == ("Play", "false")
    focusable = page.execute_script(
        "return [...document.querySelectorAll('select, button, input')].filter((e) => e.tabIndex < 0 "
        "|| !(e.labels?.length || e.ariaLabel || e.textContent)).length"
    )
    assert focusable == 0


def test_menus_switch_scenario_field_and_quantity(page):
    choose(page, "scenario", "volume")
    assert text(page, "scenario-title") == "volume"
    assert "8 \u00d7 6 \u00d7 4" in text(page, "facts")
    assert "1,234,567" in text(page, "protocol")
    choose(page, "field", "pressure")
    assert "Median VRMSE of pressure over 3 trajectories" in text(page, "table-title")
    assert column(page, "table", 5) == ["4", "4", "4"]  # correlation time
    assert "falls below 0.8" in text(page, "remarks")
    quantities = [option.text for option in Select(page.find_element(By.ID, "quantity")).options]
    assert quantities == [
        "power by wavenumber, step 1", "power by wavenumber, step 6", "power of the error by wavenumber, step 1",
        "power of the error by wavenumber, step 6", "change of the total", "ensemble: CRPS", "ensemble: spread",
        "ensemble: spread-skill ratio", "ensemble: rank histogram, steps 1",
    ]  # fmt: skip
    for quantity in quantities:
        choose(page, "quantity", quantity)
        assert page.find_elements(By.CSS_SELECTOR, "#quantity-chart .bar, #quantity-chart .series")
    assert len(page.find_elements(By.CSS_SELECTOR, "#quantity-chart .bar")) == 3
    page.find_element(By.CSS_SELECTOR, "#overview tbody tr:nth-last-child(2) button").click()
    assert text(page, "scenario-title") == "line"


def test_a_scenario_that_nothing_could_forecast_says_so(page):
    assert column(page, "overview", 2)[-1] == "no forecast, see its notes"
    page.find_element(By.CSS_SELECTOR, "#overview tbody tr:last-child button").click()
    assert text(page, "scenario-title") == "nothing"
    assert text(page, "summary") == "No trajectory could be forecast."
    assert "too short" in text(page, "notes")
    assert "No value to show." in text(page, "error-chart")
    assert not page.find_element(By.ID, "film-section").is_displayed()


def points(page, selector):
    """Coordinates of the corners of a path."""
    path = page.find_element(By.CSS_SELECTOR, selector).get_attribute("d")
    return np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path), dtype=float)


def test_the_curve_of_errors_is_drawn_to_scale_with_its_interval(page):
    curves = page.find_elements(By.CSS_SELECTOR, "#error-chart .series")
    assert len(curves) == 3
    assert len(page.find_elements(By.CSS_SELECTOR, "#error-chart .band")) == 3
    x, y = points(page, "#error-chart .series").T  # of the model: step / 10
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], atol=0.2)
    bottom = float(page.find_element(By.CSS_SELECTOR, "#error-chart .rule").get_attribute("y1"))
    np.testing.assert_allclose((bottom - y) / (bottom - y[0]), np.arange(1, 7), rtol=0.02)
    assert "spatial mean" in text(page, "error-chart")
    page.find_element(By.ID, "log").click()
    y = points(page, "#error-chart .series").T[1]
    np.testing.assert_allclose((y[0] - y) / (y[0] - y[1]), np.log2(np.arange(1, 7)), rtol=0.02)


def test_errors_are_drawn_on_a_logarithmic_axis_from_the_start_where_a_forecast_leaves_the_physics(page):
    curve = "{step: [1, 2], median: [0.1, arguments[0]]}"
    large = f"return hasLargeErrors({{forecasters: {{model: {{lead_time: {{speed: {curve}}}}}}}}})"
    assert page.execute_script(large, 40.0)
    assert not page.execute_script(large, 2.0)
    assert not page.execute_script("return names.some((name) => hasLargeErrors(data.scenarios[name]))")


def loaded(page):
    """The pictures of the film are there, and drawn."""
    script = (
        "return player.pictures.length > 0 && player.pictures.every((picture) => picture.image.complete)"
        " && (showFrame(), true)"
    )
    WebDriverWait(page, 20, 0.02).until(lambda browser: browser.execute_script(script))


def canvas_pixels(page, number):
    """(height, width, 3) of a panel."""
    loaded(page)
    script = (
        "const c = document.querySelectorAll('#panels canvas')[arguments[0]], copy = c.cloneNode(),"
        "  pen = copy.getContext('2d', { willReadFrequently: true }); pen.drawImage(c, 0, 0);"
        "return [c.height, c.width, [...pen.getImageData(0, 0, c.width, c.height).data]]"
    )
    height, width, values = page.execute_script(script, number)
    return np.array(values).reshape(height, width, 4)[..., :3]


def test_the_slider_moves_the_frame(page):
    slider = page.find_element(By.ID, "frame")
    assert text(page, "frame-text") == "lead time 0.5 simulation units (step 1)"
    for step in (1, 6):
        for number, shift in ((0, 0.0), (1, 0.25)):
            values = truth_at(step, (12, 8)) + shift
            expected = 255 * colour_map("viridis")((values - 2) / 16)[..., :3]
            np.testing.assert_allclose(canvas_pixels(page, number), expected.transpose(1, 0, 2)[::-1], atol=4)
        slider.send_keys(Keys.END)
    assert slider.get_attribute("aria-valuetext") == "lead time 3 simulation units (step 6)"


def test_the_view_of_a_volume_is_chosen_by_menu(page):
    assert not page.find_element(By.ID, "view").is_displayed()
    choose(page, "scenario", "volume")
    assert canvas_pixels(page, 0).shape == (6, 8, 3)
    choose(page, "view", "middle slice across x")
    assert canvas_pixels(page, 0).shape == (4, 6, 3)


@pytest.mark.parametrize("name", [HOSTILE, "volume", "line"])
def test_a_phone_shows_the_page_without_scrolling_sideways(page, name):
    size(page, 375, 720)
    choose(page, "scenario", name)
    widths = page.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths == [375, 375]
    small = page.execute_script(
        "return [...document.querySelectorAll('svg text')].filter((e) => e.textContent && "
        "e.getBoundingClientRect().height < 9).length"
    )
    assert small == 0
    canvas = page.find_element(By.CSS_SELECTOR, "#panels canvas").rect
    assert 140 < canvas["width"] < 375


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(page, dark):
    size(page, 1200, 900, dark)
    script = """
      const level = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } };
      const seen = 'p, li, td, th button, label, h1, h2, h3, dt, dd, svg text, .link';
      return [...document.querySelectorAll(seen)].map((e) => {
        const style = getComputedStyle(e), text = e.ownerSVGElement ? style.fill : style.color;
        const [a, b] = [level(text), level(ground(e))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05); });"""
    contrasts = page.execute_script(script)
    assert len(contrasts) > 100
    assert min(contrasts) > 4.5  # WCAG 2.1, level AA
    background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark
