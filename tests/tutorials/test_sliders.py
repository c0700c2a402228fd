"""Figures with sliders: alive in a notebook, plain pictures where one is built or read."""

import json
from pathlib import Path

import pytest
from support import sliders
from support.sliders import Slider, explore

from tests.support.by_path import module_at

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CODE = """
import matplotlib.pyplot as plt
from support.sliders import Slider, explore
explore(lambda figure, height: figure.subplots().bar(0, height), height=Slider("height (m)", 2, 1, 9))
"""

pytestmark = pytest.mark.notebooks


class Screen:
    """What a notebook displays, and the figures that came later in place of one."""

    def __init__(self):
        self.shown, self.updates = [], []

    def display(self, item, **_):
        self.shown.append(item)
        return self

    def update(self, item):
        self.updates.append(item)


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.delenv("SLIDERS_DISABLE", raising=False)
    screen = Screen()
    monkeypatch.setattr("IPython.display.display", screen.display)
    return screen


@pytest.fixture
def drawn():
    return []


@pytest.fixture
def draw(drawn):
    return lambda figure, **values: drawn.append((figure, values))


DEGREES, SIZE = Slider("turn (degrees)", 90, 0, 360, step=15), Slider("size (m)", 0.5, 0.1, 2.0, step=0.1)


def controls_of(bundle):
    from ipywidgets.widgets.widget import _instances

    return _instances[bundle[WIDGET_VIEW]["model_id"]].children


def test_a_notebook_that_is_built_gets_one_picture(screen, draw, drawn, monkeypatch, capsys):
    monkeypatch.setenv("SLIDERS_DISABLE", "1")
    explore(draw, turn=DEGREES, size=SIZE)
    [(figure, values)] = drawn
    assert values == {"turn": 90, "size": 0.5}
    assert screen.shown == [figure]
    assert capsys.readouterr().out == ""


def test_without_ipywidgets_a_line_says_how_to_get_sliders(screen, draw, drawn, monkeypatch, capsys):
    monkeypatch.setattr(sliders, "find_spec", lambda name: None)
    explore(draw, turn=DEGREES)
    assert screen.shown == [figure for figure, _ in drawn]
    [line] = capsys.readouterr().out.splitlines()
    assert "pip install ipywidgets" in line


def test_sliders_have_labels_and_ranges(screen, draw):
    explore(draw, turn=DEGREES, size=SIZE)
    turn, size = controls_of(screen.shown[0])
    assert (turn.description, turn.min, turn.max, turn.step, turn.value) == ("turn (degrees)", 0, 360, 15, 90)
    assert (size.description, size.min, size.max, size.step, size.value) == ("size (m)", 0.1, 2.0, 0.1, 0.5)
    assert isinstance(turn.value, int)


def test_a_slider_that_moves_draws_the_figure_again(screen, draw, drawn):
    explore(draw, turn=DEGREES, size=SIZE)
    turn, size = controls_of(screen.shown[0])
    turn.value = 180
    size.value = 1.5
    assert [values for _, values in drawn] == [
        {"turn": 90, "size": 0.5},
        {"turn": 180, "size": 0.5},
        {"turn": 180, "size": 1.5},
    ]
    figures = [figure for figure, _ in drawn]
    assert screen.shown[1:] == figures[:1]
    assert screen.updates == figures[1:]
    assert len(set(map(id, figures))) == 3


def test_a_saved_notebook_has_a_sentence_where_its_sliders_were(screen, draw):
    explore(draw, turn=DEGREES)
    assert screen.shown[0]["text/plain"] == "Run this cell in Jupyter to see its sliders."


def test_the_build_stores_a_picture_and_no_widgets():
    import nbformat

    build = module_at(ROOT / "tutorials/build.py")
    cells = [nbformat.v4.new_code_cell(CODE)]
    [cell] = build.run(nbformat.v4.new_notebook(metadata=build.METADATA, cells=cells)).cells
    [output] = cell.outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.data["text/plain"].startswith("<Figure")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_no_notebook_stores_a_widget(notebook):
    stored = json.loads(notebook.read_text(encoding="utf-8"))
    assert "widgets" not in stored["metadata"]
    data = [output.get("data", {}) for cell in stored["cells"] for output in cell.get("outputs", [])]
    assert not [bundle for bundle in data if WIDGET_VIEW in bundle or "(children=" in str(bundle.get("text/plain"))]
