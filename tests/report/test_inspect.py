"""The inspect page: whole, self-contained, escaped, and true to the index."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from media import read_barcode, write_video
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint

from longvlm import LongVLM, LongVLMError, VideoIndex
from longvlm.report.inspect import (
    choose_segments,
    distinct_places,
    format_clock,
    grid_side,
    render_page,
    write_page,
)

VOID_TAGS = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what a test asks about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LongVLM:
    return LongVLM.from_pretrained(save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / 'a <b>bold & "{{title}}" film.mp4', 50)


@pytest.fixture(scope="module")
def index(model: LongVLM, film: Path) -> VideoIndex:
    return model.encode(film, num_frames=10)  # segments of 4 frames: the last one is short


@pytest.fixture(scope="module")
def html(model: LongVLM, film: Path, index: VideoIndex, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pages") / "report.html"
    write_page(film, index, "<i>model</i>", path)
    return path.read_text(encoding="utf-8")


def test_the_page_is_self_contained_and_escaped(html: str, film: Path) -> None:
    page = Page(html)
    assert film.name in page.text and "<i>model</i>" in page.text
    assert "i" not in {tag for tag, attributes in page.tags if not attributes}
    references = [tag[key] for _, tag in page.tags for key in ("src", "href", "srcset", "data") if key in tag]
    assert references and all(str(link).startswith(("data:image/jpeg;base64,", "#")) for link in references)
    assert "://" not in html and "url(" not in html and "@import" not in html


def test_every_distinct_frame_is_shown_with_its_time(html: str, index: VideoIndex) -> None:
    page = Page(html)
    pictures = page.named("img")
    assert [picture["alt"] for picture in pictures] == [f"Frame at {format_clock(time)}" for time in index.frame_times]
    for picture, time in zip(pictures, index.frame_times, strict=True):
        data = base64.b64decode(str(picture["src"]).partition(",")[2])
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
        assert read_barcode(pixels) == round(time * 25)


def test_the_page_carries_the_assignment_and_the_sizes(html: str, index: VideoIndex) -> None:
    sections = Page(html).named("section")
    assert len(sections) == index.num_segments == 3
    for number, section in enumerate(sections):
        assignment = np.frombuffer(base64.b64decode(str(section["data-assignment"])), "<u2")
        assert assignment.tolist() == index.assignment[number].tolist()
        assert [int(size) for size in str(section["data-sizes"]).split()] == index.sizes[number].tolist()
        assert (section["data-patches"], section["data-side"]) == ("16", "4")
    # the places on which the short segment's frames are drawn: 2 frames fill 4 places
    frames = [int(str(tag["data-frame"])) for tag in Page(html).named("canvas")]
    assert frames == [0, 1, 2, 3, 0, 1, 2, 3, 0, 2]


def test_frames_are_shown_at_their_true_aspect(index: VideoIndex) -> None:
    pictures = {0: ["data:image/jpeg;base64,"] * 4}
    assert f"aspect-ratio:{96 / 64:.4f}" in render_page(index, pictures, "model")
    cropped = dataclasses.replace(index, compression=dataclasses.replace(index.compression, fit="crop"))
    assert "aspect-ratio:1.0000" in render_page(cropped, pictures, "model")


def test_a_page_shows_some_segments_of_very_many(index: VideoIndex) -> None:
    assert choose_segments(40, 10) == list(range(40))
    some = choose_segments(3600, 10)
    assert len(some) == 40 and some == sorted(set(some)) and some[-1] < 3600
    assert choose_segments(5, 1000) == [0]
    page = render_page(index, {0: ["data:image/jpeg;base64,"] * 4}, "model")
    assert "This page shows 1 of 3 segments in full" in page and page.count("<section") == 1


def test_a_damaged_tail_is_told(index: VideoIndex) -> None:
    page = render_page(dataclasses.replace(index, lost_seconds=2.5), {}, "model")
    assert "The last 2.5 s of the file are damaged" in page


def test_another_video_of_the_same_name_is_refused(film: Path, index: VideoIndex, tmp_path: Path) -> None:
    other = write_video(tmp_path / film.name, 49)
    with pytest.raises(LongVLMError, match="has changed since it was encoded"):
        write_page(other, index, "model", tmp_path / "report.html")


def test_distinct_places_are_the_first_of_each_frame() -> None:
    assert distinct_places([0.0, 0.0, 1.0, 2.0, 2.0, 2.0]) == [0, 2, 3]


@pytest.mark.parametrize(("patches", "side"), [(256, 16), (257, 16), (255, 16), (729, 27), (728, 27)])
def test_the_grid_is_found_with_and_without_the_class_token(patches: int, side: int) -> None:
    assert grid_side(patches) == side


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00.00"), (59.996, "1:00.00"), (725.5, "12:05.50"), (3723.25, "1:02:03.25")]
)
def test_the_clock(seconds: float, shown: str) -> None:
    assert format_clock(seconds) == shown


def test_the_template_has_no_other_placeholders(html: str, film: Path) -> None:
    left = re.findall(r"\{\{\w+\}\}", html)
    assert set(left) == {"{{title}}"} and len(left) == html.count("film.mp4")
