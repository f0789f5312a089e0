"""The report in a real browser: it opens from disk, a number shows its runs, sorting and filtering work."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from analysis_records import missing, recorded, write_experiments

from repro.analysis.report import Origin, render_report
from repro.analysis.rules import Printed
from repro.registry import Registry, Selection

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra: test)")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium or chromedriver is not installed"),
]
QUIET = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    options = webdriver.ChromeOptions()
    for argument in QUIET.split():
        options.add_argument(argument)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(rules, tmp_path_factory) -> Path:
    """The page of VGG whole, ResNet-18 without a record; the best loss of VGG is the second row."""
    folder = tmp_path_factory.mktemp("page")
    registry = Registry.load(write_experiments(folder / "experiments"))
    paper = registry.preset("paper")
    states = missing(registry.select_runs(Selection(networks=("resnet18",)), paper))
    for loss, accuracy in {"cross-entropy": 71.0, "scaled-bn-m1": 73.0}.items():
        runs = registry.select_runs(Selection(networks=("vgg16",), losses=(loss,)), paper)
        states += recorded(registry, paper, runs, accuracy)
    origin = Origin("0.1.0", None, "results/paper", False)
    without = rules.model_copy(update={"printed": Printed()})
    text = render_report(states, [], registry, paper, without, origin)
    (folder / "report.html").write_text(text, encoding="utf-8")
    return folder / "report.html"


@pytest.fixture
def page(browser, file: Path):
    size(browser, 1280, 900)
    browser.get(file.as_uri())
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def size(browser, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def find(page, selector: str):
    return page.find_element("css selector", selector)


def rows(page) -> list[str]:
    return [
        row.get_attribute("data-loss")
        for row in page.find_elements("css selector", "#table1 tbody tr")
        if row.is_displayed()
    ]


def test_a_click_on_a_number_shows_its_runs_and_escape_closes_them(page):
    number = find(page, '#table1 td[data-column="VGG"] a[data-cell]')
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", number)
    assert not find(page, "dialog").is_displayed()
    number.click()
    dialog = find(page, "dialog")
    assert dialog.is_displayed()
    assert "repro train cifar100/vgg16/cross-entropy/seed2 --preset paper" in dialog.text
    assert "71.00 ± 0.00 % (n = 3)" in dialog.text
    assert page.find_elements("css selector", "#runs [id='cell-cifar100_vgg16_cross-entropy']") == []
    page.switch_to.active_element.send_keys("\ue00c")
    assert not dialog.is_displayed()
    page.execute_async_script("setTimeout(arguments[0], 50)")  # until the browser has told the page
    assert page.find_elements("css selector", "#runs [id='cell-cifar100_vgg16_cross-entropy']") != []


def test_a_number_opens_by_keyboard_alone(page):
    page.execute_script("document.querySelector('#table1 a[data-cell]').focus()")
    page.switch_to.active_element.send_keys("\ue007")
    assert find(page, "dialog").is_displayed()
    find(page, "dialog .close").send_keys("\ue007")
    assert not find(page, "dialog").is_displayed()


def test_a_column_sorts_down_up_and_back(page):
    button = find(page, '#table1 button[data-sort="VGG"]')
    paper_order = ["Cross-entropy Loss", "Our Loss (m = 1)"]
    assert rows(page) == paper_order
    for order, state in (
        (paper_order[::-1], "descending"),
        (paper_order, "ascending"),
        (paper_order, "none"),
    ):
        button.click()
        assert rows(page) == order
        assert button.find_element("xpath", "..").get_attribute("aria-sort") == state


def test_filters_leave_what_matches_and_say_how_many(page):
    find(page, '.filters input[name="loss"]').send_keys("our")
    assert rows(page) == ["Our Loss (m = 1)"]
    assert find(page, ".filters output").text == "2 cells"
    find(page, '.filters select[name="state"] option[value="full"]').click()
    assert find(page, ".filters output").text == "1 cell"
    find(page, '.filters button[type="reset"]').click()
    page.execute_async_script("setTimeout(arguments[0], 50)")
    assert len(rows(page)) == 2
    assert find(page, ".filters output").text == ""


@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(page, width, scheme):
    size(page, width, 800)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    background, ink = page.execute_script(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )
    light = [sum(map(int, colour[4:-1].split(", "))) > 384 for colour in (background, ink)]
    assert light == ([True, False] if scheme == "light" else [False, True])


def test_the_colours_that_a_reader_chooses_hold(page):
    find(page, '[data-theme-choice="dark"]').click()
    dark = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    page.refresh()
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == dark
    find(page, '[data-theme-choice="auto"]').click()


def test_without_javascript_a_number_leads_to_its_runs(page):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.refresh()
        link = find(page, "#table1 a[data-cell]")
        target = link.get_attribute("href").partition("#")[2]
        link.click()
        assert find(page, f"[id='{target}']").is_displayed(), "the browser opens what is folded around it"
        assert not find(page, ".filters").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
