"""The report in a real browser: it renders, asks nobody for anything, and answers the reader."""

import json
import os
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.fixtures.finished_run import HOSTILE, finished_run
from tests.fixtures.stack import wait_until
from trainer.report import write_report
from trainer.runtime.run_folder import RunFolder

SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


def find_program(name):
    path = shutil.which(name)
    if path is None:
        leave_out = pytest.fail if os.environ.get("CI") else pytest.skip
        leave_out(
            f"no {name!r} on this machine, and the report is tested in a real browser: "
            "apt-get update && apt-get install -y chromium chromium-driver"
        )
    return path


def test_without_a_browser_these_tests_are_left_out_but_not_by_ci(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install -y chromium"):
        find_program("chromium")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install -y chromium"):
        find_program("chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = find_program("chromium")
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(find_program("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the report of a run of two rewards lies."""
    folder = RunFolder(tmp_path_factory.mktemp("run"), fence=lambda: None)
    during = [(i, {"eval/kl": 0.5 * i}) for i in (2, 4)]
    rewards = ("brightness", "a_second_one_of_a_long_name")
    run = finished_run(rewards=rewards, during=during, unit="kB")
    write_report(folder, run.spec, run.summary, run.before, run.after, run.metrics)
    return (folder.path / "report.html").as_uri()


@pytest.fixture
def page(browser, address):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(address)
    return browser


def shown(page, selector):
    return [e.is_displayed() for e in page.find_elements(By.CSS_SELECTOR, selector)]


def requests(page):
    """The addresses that it has asked for since this was last called."""
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def test_it_renders_without_complaint_and_without_a_request(page, address):
    assert page.find_element(By.TAG_NAME, "h1").text.startswith("brightness rises from")
    assert page.get_log("browser") == []
    requested = requests(page)
    assert requested[0] == address
    assert [url for url in requested[1:] if not url.startswith("data:image/png;base64,")] == []


def test_the_watch_for_complaints_and_requests_sees_them(page):
    """The check above would be worth nothing if these logs stayed empty whatever happens."""
    page.execute_script("fetch('http://127.0.0.1:9/x').catch(() => {})")
    wait_until(lambda: "Content Security Policy" in str(page.get_log("browser")), "a complaint")
    # Of what the page's policy forbids no request is begun; its pictures are requests, too.
    assert len([url for url in requests(page) if url.startswith("data:image/png")]) > 0


def test_pictures_have_their_size_and_show_their_pixels(page):
    sizes = page.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.complete])"
    )
    assert sizes == [[16, 16, True]] * 40
    first = page.find_element(By.CSS_SELECTOR, ".shot img")
    assert first.value_of_css_property("image-rendering") == "pixelated"
    assert first.size["width"] > 60
    assert all(alt for alt in page.execute_script("return [...document.images].map(i => i.alt)"))


def test_a_prompt_with_markup_is_text(page):
    prompt = page.find_elements(By.CSS_SELECTOR, ".prompt")[1]
    assert prompt.get_property("textContent") == HOSTILE
    assert page.title == "brighter-1a2b: report"
    assert page.execute_script("return document.scripts.length") == 1
    assert page.find_elements(By.CSS_SELECTOR, "img[src=x]") == []


def test_its_policy_refuses_scripts_that_are_not_its_own(page):
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = \"owned\"';"
        "document.body.append(s)"
    )
    assert page.title == "brighter-1a2b: report"


def test_one_side_can_be_hidden_and_the_rest_unfolded(page):
    assert shown(page, ".galleries > ol .shot") == [True] * 32
    page.find_element(By.CSS_SELECTOR, "label[for=view-after]").click()
    assert shown(page, ".galleries > ol .shot.before") == [False] * 16
    assert shown(page, ".galleries > ol .shot.after") == [True] * 16
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert shown(page, ".galleries > ol .shot.before") == [True] * 16
    assert shown(page, ".galleries > ol .shot.after") == [False] * 16
    assert not any(shown(page, "details .shot"))
    page.find_element(By.CSS_SELECTOR, "details summary").click()
    assert shown(page, "details .shot.before") == [True] * 4


def test_the_curve_says_its_values_to_pointer_and_keys(page):
    frame = page.find_element(By.CSS_SELECTOR, "[data-points]")
    output = frame.find_element(By.TAG_NAME, "output")
    plot = frame.find_element(By.CSS_SELECTOR, ".plot")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    assert output.text == "iteration 6: 0.8000 ± 0.0500"
    left_edge = -plot.size["width"] // 2 + 2
    ActionChains(page).move_to_element_with_offset(plot, left_edge, 0).perform()
    assert output.text == "iteration 1: 0.3000 ± 0.0500"
    assert frame.find_element(By.CSS_SELECTOR, ".cursor").is_displayed()
    ActionChains(page).move_to_element(page.find_element(By.ID, "reward-1")).perform()
    assert output.text == "iteration 6: 0.8000 ± 0.0500"
    frame.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert output.text == "iteration 5: 0.7000 ± 0.0500"


def test_evaluations_during_training_are_curves_that_answer_too(page):
    section = page.find_element(By.CSS_SELECTOR, "section[aria-labelledby=watch]")
    frames = section.find_elements(By.CSS_SELECTOR, "[data-points]")
    assert [frame.accessible_name.split()[0] for frame in frames] == [
        "eval/brightness/mean",
        "eval/a_second_one_of_a_long_name/mean",
        "eval/kl",
    ]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", frames[2])
    output = frames[2].find_element(By.TAG_NAME, "output")
    assert output.text == "iteration 4: 2.00"
    frames[2].send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert output.text == "iteration 2: 1.00"


def test_it_fits_a_phone(page):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert page.execute_script("return document.documentElement.scrollWidth") == 360


def contrast(page, element):
    """The ratio of WCAG 2 between an element's text and the page behind it."""
    colours = page.execute_script(
        "return [getComputedStyle(arguments[0]).color,"
        " getComputedStyle(document.body).backgroundColor]",
        element,
    )

    def luminance(colour):
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted(map(luminance, colours))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_coloured_can_be_read(page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    better = page.find_element(By.CSS_SELECTOR, ".shot.after .score.better")
    kinds = {
        selector: contrast(page, page.find_element(By.CSS_SELECTOR, selector))
        for selector in (".note", ".tick-y", ".label-y", ".level-name.after", ".shot .score")
    }
    kinds["better"] = contrast(page, better)
    page.execute_script("arguments[0].className = 'score worse'", better)
    kinds["worse"] = contrast(page, better)
    assert {kind: ratio for kind, ratio in kinds.items() if ratio < 4.5} == {}


def test_it_has_a_dark_scheme(page):
    def luminance():
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(",")) / 3

    light = luminance()
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert light > 200
    assert luminance() < 60
