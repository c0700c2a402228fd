"""Each diagram can be read, in its frame, without overlaps and in both themes, and a notebook shows it."""

import base64
import inspect
import re
from itertools import combinations
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from support import diagrams, drawing

TUTORIALS = Path(__file__).parents[2] / "tutorials"
SVG = "{http://www.w3.org/2000/svg}"
DIAGRAMS = [
    function
    for function in vars(diagrams).values()
    if inspect.isfunction(function) and function.__annotations__.get("return") is drawing.Drawing
]

each = pytest.mark.parametrize("diagram", DIAGRAMS, ids=lambda function: function.__name__)


class Text(NamedTuple):
    """A line of text and the space that it takes, with letters as wide as those of a wide font."""

    words: str
    left: float
    right: float
    top: float
    bottom: float


def root_of(diagram):
    return ElementTree.fromstring(diagram().svg)


def texts_of(root):
    found = []
    for text in root.iter(f"{SVG}text"):
        x, y, size = float(text.get("x")), float(text.get("y")), float(text.get("font-size"))
        width = len(text.text) * size * (0.61 if "monospace" in text.get("font-family", "") else 0.54)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        found.append(Text(text.text, left, left + width, y - 0.75 * size, y + 0.2 * size))
    return found


def overlap(one, other):
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_there_are_diagrams():
    assert len(DIAGRAMS) == 10


@each
def test_it_says_what_it_shows(diagram):
    root = root_of(diagram)
    title, description = (root.find(f"{SVG}{name}").text for name in ("title", "desc"))
    assert len(title) > 10
    assert len(description) > 60
    assert repr(diagram()) == f"{title}. {description}"


@each
def test_its_text_is_inside_and_large_enough(diagram):
    root = root_of(diagram)
    _, _, width, height = map(float, root.get("viewBox").split())
    assert width == 700  # at which sizes in pixels are those on the page
    texts = texts_of(root)
    assert texts
    assert [text for text in texts if text.left < 4 or text.right > width - 4] == []
    assert [text for text in texts if text.top < 4 or text.bottom > height - 4] == []
    assert min(float(text.get("font-size")) for text in root.iter(f"{SVG}text")) >= 11


@each
def test_no_text_overlaps_another_or_the_edge_of_a_box(diagram):
    root = root_of(diagram)
    texts = texts_of(root)
    assert [(one.words, other.words) for one, other in combinations(texts, 2) if overlap(one, other)] == []
    for rect in root.iter(f"{SVG}rect"):
        if not rect.get("x"):
            continue  # the page
        x, y, width, height = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        box = Text("", x, x + width, y, y + height)
        cut = [
            text.words
            for text in texts
            if overlap(text, box)
            and not (x <= text.left and text.right <= x + width and y <= text.top and text.bottom <= y + height)
        ]
        assert cut == [], (x, y)


@each
def test_everything_is_inside(diagram):
    root = root_of(diagram)
    _, _, width, height = map(float, root.get("viewBox").split())
    for rect in root.iter(f"{SVG}rect"):
        x, y = float(rect.get("x", 0)), float(rect.get("y", 0))
        assert 0 <= x <= x + float(rect.get("width")) <= width
        assert 0 <= y <= y + float(rect.get("height")) <= height
    for path in root.findall(f"{SVG}path"):
        points = re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d"))
        assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in points)


@each
def test_its_colours_are_those_of_the_palette(diagram):
    svg = diagram().svg
    style, rest = re.search(r"<style>(.*?)</style>", svg).group(1), re.sub(r"<style>.*?</style>", "", svg)
    assert style == drawing.STYLE
    assert re.findall(r"#[0-9a-f]{3,8}\b", rest) == []
    known = {"ink", *drawing.FILLS, *drawing.STROKES, *(f"tip-{name}" for name in drawing.STROKES)}
    assert {name for classes in re.findall(r'class="(.*?)"', rest) for name in classes.split()} <= known


@pytest.mark.parametrize("palette", [drawing.LIGHT, drawing.DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_in_both_themes(palette):
    assert set(palette) == {"ink", *drawing.FILLS, *drawing.STROKES}
    assert min(contrast(palette["ink"], palette[name]) for name in drawing.FILLS) > 7
    assert min(contrast(palette[name], palette["page"]) for name in drawing.STROKES) > 4


@each
def test_a_notebook_shows_it(diagram):
    cells = "\n".join(path.read_text("utf-8") for path in (TUTORIALS / "sources").glob("*.py"))
    assert len(re.findall(rf"^# %%\ndiagrams\.{diagram.__name__}\(\)$", cells, re.MULTILINE)) == 1


def test_a_notebook_gets_an_image_with_a_description():
    picture = diagrams.block()
    [(data, alt)] = re.findall(r'^<img src="data:image/svg\+xml;base64,(.*?)" alt="(.*?)" ', picture._repr_html_())
    assert base64.b64decode(data).decode() == picture.svg
    assert alt == repr(picture)


def test_the_picture_of_the_readme_is_the_same():
    assert (TUTORIALS / "figures/architecture.svg").read_text("utf-8") == diagrams.architecture().svg


def test_the_numbers_of_the_quantized_row_are_the_packages():
    import numpy as np

    from gemma_np.compression.quantization import Scheme, quantize

    shown = {text.words for text in texts_of(root_of(diagrams.quantized_row))}
    row = np.array([[0.10, -0.35, 0.21, 0.07, 1.40, 0.20, -0.60, 0.40]], np.float32)
    assert {f"{weight:.2f}".replace("-", "\N{MINUS SIGN}") for weight in row[0]} <= shown
    stored = quantize(row, Scheme("int4", 4))
    assert {f"{byte & 15} and {byte >> 4}" for byte in stored.packed[0]} <= shown
    assert all(any(words.endswith(f"= {scale:.2f}") for words in shown) for scale in stored.scales[0])
    assert stored.scales.shape == (1, 2)


def test_the_ring_is_the_packages():
    import numpy as np

    from gemma_np.model.attention_mask import attention_mask
    from gemma_np.model.kv_cache import LayerCache

    cache, held, texts = LayerCache((1, 3, 1), np.float32), [], texts_of(root_of(diagrams.ring))
    for tokens in ((0, 1, 2), (3,), (4,), (5, 6)):
        k = np.array(tokens, np.float32).reshape(1, -1, 1)
        _, _, positions = cache.append(k, k)
        held.extend(cache.keys.ravel())
    numbers = [int(text.words) for text in texts if text.words.isdigit()]
    mask = attention_mask(range(5, 7), positions, 3).astype(int)
    assert numbers == [*held, *positions, *mask.ravel()]


def test_the_reach_is_that_of_the_packages_masks():
    import numpy as np

    from gemma_np.model.attention_mask import attention_mask

    circles = [circle.get("class").startswith("attention") for circle in root_of(diagrams.reach).iter(f"{SVG}circle")]
    for panel, windows in zip(np.reshape(circles, (2, 4, 8)), ((3, 3, 3), (3, None, 3)), strict=True):
        reached = np.eye(8, dtype=bool)[7]
        for row, window in zip(panel[:0:-1], reversed(windows), strict=True):
            assert np.array_equal(row, reached)
            reached = reached @ attention_mask(range(8), range(8), window)
        assert np.array_equal(panel[0], reached)
