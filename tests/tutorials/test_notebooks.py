"""The notebooks are what their sources say, run from top to bottom, and are small enough to look at."""

import ast
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
    cells = build.read(source).cells
    assert [cell.source for cell in stored.cells] == [cell.source for cell in cells]
    assert [cell.metadata for cell in stored.cells] == [cell.metadata for cell in cells]


@each_source
def test_the_stored_notebook_has_pictures_and_no_errors(build, source, stored):
    assert build.notebook_of(source).stat().st_size < 1e6
    outputs = [output for cell in stored.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@each_source
def test_its_minutes_are_those_of_its_words_and_exercises(build, source):
    cells = build.read(source).cells
    [stated] = re.findall(r"About (\d+)\s+minutes", " ".join(cells[0].source.split()))
    exercises = sum(cell.source.splitlines()[-1].startswith("check(") for cell in cells)
    words = sum(len(cell.source.split()) for cell in cells if not is_check(cell))
    measured = words / 200 + 3 * exercises
    assert int(stated) % 5 == 0
    assert abs(int(stated) - measured) < 5


@each_source
def test_no_cell_is_long(build, source):
    cells = [cell.source for cell in build.read(source).cells if cell.cell_type == "code"]
    assert [cell for cell in cells if len(cell.splitlines()) > 15 and not only_imports(cell)] == []


@each_source
def test_no_cell_plots(source):
    assert "matplotlib" not in source.read_text(encoding="utf-8")


@each_source
def test_what_only_checks_is_folded_and_needed_by_nothing_else(build, source):
    cells = [cell for cell in build.read(source).cells if cell.cell_type == "code"]
    assert [cell.source for cell in cells if has_assert(cell.source) and not is_check(cell)] == []
    assert [cell.source for cell in cells if is_check(cell) and not has_assert(cell.source)] == []
    shown = "\n".join(cell.source for cell in cells if not is_check(cell))
    folded = "\n".join(cell.source for cell in cells if is_check(cell))
    assert assigned(folded) & used(shown) - assigned(shown) == set()


def is_check(cell):
    """Whether a cell is marked as one that only checks."""
    return "check" in cell.metadata.get("tags", ())


def only_imports(code):
    """Whether code does nothing but import."""
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(code).body)


def has_assert(code):
    """Whether code has an assert statement, or calls an assert of NumPy."""
    nodes = list(ast.walk(ast.parse(code)))
    return any(isinstance(node, ast.Assert) for node in nodes) or any(
        isinstance(node, ast.Attribute) and node.attr.startswith("assert_") for node in nodes
    )


def assigned(code):
    """The names that code gives a value."""
    nodes = list(ast.walk(ast.parse(code)))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return defined | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def used(code):
    """The names whose value code uses."""
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


@each_source
def test_its_links_lead_somewhere(source):
    text = source.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (ROOT / "tutorials" / target).exists(), target


def test_every_notebook_has_a_source(build):
    assert sorted((ROOT / "tutorials").glob("*.ipynb")) == [build.notebook_of(source) for source in SOURCES]
