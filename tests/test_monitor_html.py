"""The HTML page of a monitor: one file, nothing from elsewhere, names as text; and what a browser shows of it."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.image import imread

from monitor_records import falling, monitor_of, record_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLAYWRIGHT = "~/.cache/ms-playwright/chromium-*/chrome-linux*/chrome"
BROWSER = next(filter(None, map(shutil.which, NAMES)), None) or next(
    iter(glob.glob(os.path.expanduser(PLAYWRIGHT))), None
)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page with their attributes, its text without styles, and what was not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def test_the_page_is_one_file_with_pictures_and_a_table(tmp_path):
    records = [record_of(step, *falling(2, -40.0), gamma=[0.941, 1e-40]) for step in (0, 50)]
    records += [record_of(50, [0, -1, -2, -3, -np.inf], layer="1.sublayer", horizon=[np.inf], fault="x at timestep 3")]
    monitor_of(*records, losses=[3, 2, 1]).save_html(tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(content)
    assert page.open == []
    sources = [attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes]
    assert len(sources) == 1 + 2 * 3  # the loss; two pictures of each row
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in content
    assert "://" not in content
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")
    assert "3 records of 2 layers, from step 0 to step 50." in page.text
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", content)
    assert [name for name, _ in rows] == ["LSTM/layer 0", "LSTM/layer 1", "1.sublayer"]
    cells = [re.findall(r"<span>(.*?)</span>", row) for _, row in rows]
    assert cells[0][:6] == ["50", "10", "0.941", "3", "10<sup>0.0</sup>", "10<sup>−360.0</sup>"]
    assert cells[1][2] == "1e−40"
    assert cells[2][3:] == ["never", "10<sup>0.0</sup>", "0", "–", "weight_hh_l0 0.25", "–", "x at timestep 3"]
    assert "prefers-color-scheme: dark" in content


def test_names_are_text(tmp_path):
    name = "<script>alert('a')</script> & \"b\" \x1b \udc80"
    record = record_of(0, *falling(1), layer=name, fault=name)
    record.cancellation[name] = 0.125
    monitor_of(record).save_html(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    shown = "<script>alert('a')</script> & \"b\" \\x1b \\udc80"
    assert page.text.count(shown) == 4  # a heading, and three cells of the table
    assert "script" not in {tag for tag, _ in page.elements}
    assert sum(shown in attributes["alt"] for tag, attributes in page.elements if tag == "img") == 2


def test_an_existing_file_is_replaced_by_force_alone(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("mine")
    monitor = monitor_of(record_of(0, *falling(1)))
    with pytest.raises(FileExistsError, match=r"path exists already, and force is False: .*page\.html"):
        monitor.save_html(path)
    assert path.read_text() == "mine"
    monitor.save_html(path, force=True)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_without_a_record_there_is_no_page(tmp_path):
    with pytest.raises(ValueError, match="the history is empty"):
        monitor_of().save_html(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def browse(folder, *options):
    """Run the browser on ``page.html``; its profile is in the folder, too."""
    page = (folder / "page.html").as_uri()
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    return subprocess.run([*command, *options, page], capture_output=True, timeout=300, check=True).stdout.decode()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page(tmp_path, width):
    """Its text, the table, and the pictures with their colours: yellow and dark violet are the ends of viridis."""
    monitor_of(*(record_of(step, *falling(1, -40.0)) for step in (0, 50)), losses=[3, 2]).save_html(
        tmp_path / "page.html"
    )
    text = Page(browse(tmp_path, "--dump-dom")).text
    assert "Gradient through time during training" in text
    assert "weight_hh_l0 0.25" in text
    size = f"--window-size={width},2200"
    browse(tmp_path, "--hide-scrollbars", size, f"--screenshot={tmp_path / 'page.png'}")
    pixels = imread(tmp_path / "page.png")[..., :3]
    assert pixels.shape[:2] == (2200, width)
    assert np.ptp(pixels) > 0.9
    for colour in ((253, 231, 37), (68, 1, 84)):
        near = np.abs(pixels - np.array(colour) / 255).max(axis=2) < 0.03
        assert near.sum() > 500
        assert np.flatnonzero(near.any(axis=0)).max() < width


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), r"path must be a str or os\.PathLike, got 3"),
        (("page.html", 1), "force must be True or False, got 1"),
        ((None,), r"path must be a str or os\.PathLike, got None"),
    ],
)
def test_what_is_no_path_and_no_bool_is_named(arguments, message):
    monitor = monitor_of(record_of(0, *falling(1)))
    with pytest.raises(TypeError, match=message):
        monitor.save_html(*arguments)
