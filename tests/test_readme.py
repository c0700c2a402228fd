"""The README and the pages in docs/ tell the truth: their Python runs, and what they link to exists."""

import re
from pathlib import Path

import numpy as np
import pytest

from gemma_np.model.records import RECORDS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def run(page, names):
    """Run the Python of a page; later blocks use the names of earlier ones."""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    return names


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_the_example_of_the_readme_decodes():
    names = run(README, {})
    model, ids = names["model"], [*names["ids"], int(names["next_id"])]
    np.testing.assert_allclose(names["x"][-1], model.trace(ids)["norm"][-1], atol=1e-4)


def test_the_examples_of_the_pages_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(ROOT / "docs" / "generate.md", {})
    names = run(ROOT / "docs" / "python.md", {})
    assert "logits_capped" in capsys.readouterr().out
    np.testing.assert_allclose(names["rms_norm"](np.array([3.0, 4.0]), np.zeros(2), 1e-6), [0.8485, 1.1314], atol=1e-4)
    assert names["gradients"].keys() == names["model"].weights.keys()

    model = names["model"]
    run(ROOT / "docs" / "compression.md", names)
    assert names["small"].perplexity("To be") == pytest.approx(model.perplexity("To be"), rel=0.5)
    run(ROOT / "docs" / "training.md", names)
    assert len(names["run"].log) == 3


def test_the_page_about_looking_inside_says_what_its_examples_show(capsys):
    names = run(ROOT / "docs" / "interpretability.md", {})
    steered = capsys.readouterr().out
    effect, score, without = names["effect"], names["his_or_her"], names["without_head"]
    model, king, queen = names["model"], names["king"], names["queen"]
    assert (score(model.logits(king)), score(model.logits(queen))) == pytest.approx((2.4, -0.9), abs=0.05)
    np.testing.assert_allclose(effect[:3, 4], [2.3, 2.0, 1.9], atol=0.06)
    np.testing.assert_allclose(effect[:3, :4], -0.9, atol=0.05)
    np.testing.assert_allclose(effect[3], [-0.87] * 5 + [2.43], atol=0.05)
    apart = [score(without(king, 3, head)) - score(without(queen, 3, head)) for head in range(4)]
    assert apart[2] < 0.8
    assert min(apart[:2] + apart[3:]) > 3
    assert 0.35 < names["probs"]["layers.3.self_attn.probs"][2, -1, 4] < 0.45
    assert " his kingdoms" in steered
    assert " her husband" in steered


def test_the_table_of_transformerlens_has_our_names():
    page = (ROOT / "docs" / "interpretability.md").read_text(encoding="utf-8")
    first = re.findall(r"^\| `(\S+)`", page, re.MULTILINE)
    assert len(first) > 10
    assert {name.replace("N", "*") for name in first} <= {row.name for row in RECORDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_it_links_to_is_there(page):
    places = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [place for place in places if not (page.parent / place).exists()] == []


def test_the_readme_links_to_every_page():
    links = set(re.findall(r"\]\((docs/[^)#]+)", README.read_text(encoding="utf-8")))
    assert links == {f"docs/{page.name}" for page in PAGES[1:]}
