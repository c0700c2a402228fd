"""The notebooks are what their sources say, run from top to bottom, and are small enough to look at."""

import re
from pathlib import Path

import pytest

from tests.support.by_path import module_at

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "tutorials/sources").glob("*.py"))

pytestmark = pytest.mark.notebooks
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


@pytest.fixture(scope="module")
def build():
    return module_at(ROOT / "tutorials/build.py")


@pytest.fixture
def stored(build, source):
    import nbformat

    return nbformat.read(build.notebook_of(source), as_version=4)


@each_source
def test_it_runs_from_top_to_bottom(build, source):
    build.run(build.read(source))


@each_source
def test_the_stored_notebook_has_the_cells_of_its_source(build, source, stored):
    assert [cell.source for cell in stored.cells] == [cell.source for cell in build.read(source).cells]


@each_source
def test_the_stored_notebook_has_pictures_and_no_errors(build, source, stored):
    assert build.notebook_of(source).stat().st_size < 1e6
    outputs = [output for cell in stored.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@each_source
def test_its_minutes_are_those_of_its_words_and_exercises(build, source):
    cells = [cell.source for cell in build.read(source).cells]
    [stated] = re.findall(r"About (\d+)\s+minutes", " ".join(cells[0].split()))
    exercises = sum(cell.splitlines()[-1].startswith("check(") for cell in cells)
    measured = sum(len(cell.split()) for cell in cells) / 200 + 3 * exercises
    assert int(stated) % 5 == 0
    assert abs(int(stated) - measured) < 5


@each_source
def test_its_links_lead_somewhere(source):
    text = source.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (ROOT / "tutorials" / target).exists(), target


def test_every_notebook_has_a_source(build):
    assert sorted((ROOT / "tutorials").glob("*.ipynb")) == [build.notebook_of(source) for source in SOURCES]
