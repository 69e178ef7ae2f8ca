"""The inspect page as a reader uses it: in Chromium, with a pointer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
import torch
from media import write_video
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from tiny_checkpoint import save_tiny_checkpoint

from longvlm import LongVLM, VideoIndex
from longvlm.report.inspect import write_page

SIDE = 4  # patches along a side of the tiny tower's frames


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "film.mp4", 50)


@pytest.fixture(scope="module")
def index(film: Path, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    model = LongVLM.from_pretrained(save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))
    return model.encode(film, num_frames=10)


@pytest.fixture(scope="module")
def browser(film: Path, index: VideoIndex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed, so the page can't be used as a reader would")
    folder = tmp_path_factory.mktemp("page")
    write_page(film, index, "model", folder / "report.html")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync", "disable-quic"):
        options.add_argument(f"--{argument}")
    for argument in (
        "disable-dev-shm-usage",
        "disable-background-networking",
        "disable-component-update",
        "window-size=1200,900",
    ):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options=options, service=Service(driver)) as chrome:
        chrome.get((folder / "report.html").as_uri())
        yield chrome
        complaints = [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]
        assert complaints == []


def point_at(browser: Chrome, canvas: WebElement, row: int, column: int) -> ActionChains:
    """Move the pointer to the middle of a patch."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    x, y = ((place + 0.5) / SIDE - 0.5 for place in (column, row))
    chain = ActionChains(browser)
    chain.move_to_element_with_offset(canvas, round(x * canvas.size["width"]), round(y * canvas.size["height"]))
    return chain


def expected_words(index: VideoIndex, segment: int, token: int) -> str:
    assignment = index.assignment[segment]
    places = torch.nonzero(assignment == token).flatten()
    patches_per_frame = SIDE * SIDE
    frames, num_frames = len((places // patches_per_frame).unique()), len(assignment) // patches_per_frame
    share = Decimal(100 * len(places) / len(assignment)).quantize(Decimal("0.1"), ROUND_HALF_UP)  # as browsers do
    patches = "1 patch" if len(places) == 1 else f"{len(places)} patches"
    tokens = index.compression.tokens_per_segment
    return f"Token {token + 1} of {tokens}: {patches} ({share} %) from {frames} of the segment’s {num_frames} frames"


def test_pointing_at_a_patch_tells_its_token(browser: Chrome, index: VideoIndex) -> None:
    sections = browser.find_elements(By.CSS_SELECTOR, "section")
    assert len(sections) == index.num_segments
    for segment, section in enumerate(sections):
        says = section.find_element(By.CLASS_NAME, "says")
        idle = says.text
        for canvas in section.find_elements(By.TAG_NAME, "canvas"):
            frame = int(str(canvas.get_attribute("data-frame")))
            for row, column in ((0, 0), (1, 2), (3, 3)):
                point_at(browser, canvas, row, column).perform()
                token = int(index.assignment[segment, frame * SIDE * SIDE + row * SIDE + column])
                assert says.text == expected_words(index, segment, token)
        ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
        assert says.text == idle


def test_a_click_holds_a_token_and_another_lets_it_go(browser: Chrome, index: VideoIndex) -> None:
    section = browser.find_element(By.CSS_SELECTOR, "section")
    says, canvas = section.find_element(By.CLASS_NAME, "says"), section.find_element(By.TAG_NAME, "canvas")
    heading = browser.find_element(By.TAG_NAME, "h1")
    idle = says.text
    held = expected_words(index, 0, int(index.assignment[0, 0])) + ". Click it again to let go."
    point_at(browser, canvas, 0, 0).click().perform()
    assert says.text == held
    ActionChains(browser).move_to_element(heading).perform()
    assert says.text == held
    assert len(section.find_elements(By.CSS_SELECTOR, ".bar .chosen")) == 1
    point_at(browser, canvas, 0, 0).click().move_to_element(heading).perform()
    assert says.text == idle
    assert not section.find_elements(By.CSS_SELECTOR, ".bar .chosen")


def test_the_colours_of_a_frame_are_those_of_its_tokens(browser: Chrome, index: VideoIndex) -> None:
    canvas = browser.find_element(By.CSS_SELECTOR, "section canvas")
    read_middle = """
      const [canvas, side] = arguments, context = canvas.getContext("2d"), colours = [];
      for (let row = 0; row < side; row++) for (let column = 0; column < side; column++) {
        const x = (column + .5) * canvas.width / side, y = (row + .5) * canvas.height / side;
        colours.push([...context.getImageData(x, y, 1, 1).data].join());
      }
      return colours;"""
    colours = browser.execute_script(read_middle, canvas, SIDE)
    tokens = index.assignment[0, : SIDE * SIDE].tolist()
    assert len(set(zip(tokens, colours, strict=True))) == len(set(tokens)) == len(set(colours))


def test_the_slider_sets_the_strength_of_the_colours(browser: Chrome) -> None:
    canvas = browser.find_element(By.CSS_SELECTOR, "section canvas")
    slider = browser.find_element(By.ID, "tint")
    for value in (0, 75):
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, value
        )
        assert float(canvas.value_of_css_property("opacity")) == pytest.approx(value / 100)
