"""Build the notebooks from their sources: run each from top to bottom and store its outputs.

    python tutorials/build.py            # all
    python tutorials/build.py 02 05      # those whose names begin like this

Needs pip install -e ".[notebooks]".
"""

import argparse
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

TUTORIALS = Path(__file__).parent
SOURCES = sorted((TUTORIALS / "sources").glob("*.py"))

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FOLDED = {"jupyter": {"source_hidden": True}, "tags": ["check"]}
"""The metadata of a cell that only checks what the cells above it have claimed: JupyterLab opens it on a click."""


def read(source: Path) -> nbformat.NotebookNode:
    """Return the notebook of a source without outputs, its checks folded.

    Numbered cells make it the same each time.
    """
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = nbformat.from_dict(FOLDED if "check" in cell.metadata.get("tags", ()) else {})
    return notebook


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run every cell in order, without progress bars and sliders. Raises CellExecutionError when a cell fails."""
    where = {"metadata": {"path": str(TUTORIALS)}}
    client = NotebookClient(notebook, timeout=600, resources=where, record_timing=False)
    return client.execute(env={**os.environ, "TQDM_DISABLE": "1", "SLIDERS_DISABLE": "1"})


def notebook_of(source: Path) -> Path:
    """Return the path of the notebook of a source."""
    return TUTORIALS / f"{source.stem}.ipynb"


def main() -> None:
    """Run the chosen sources and write their notebooks."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="example: python tutorials/build.py 02 05"
    )
    parser.add_argument("beginnings", nargs="*", metavar="NN", help="beginnings of names (default: all)")
    chosen = tuple(parser.parse_args().beginnings) or ("",)
    sources = [source for source in SOURCES if source.stem.startswith(chosen)]
    if not sources:
        parser.error(f"{' '.join(chosen)}: no such source in {TUTORIALS / 'sources'}")
    for source in (bar := tqdm(sources, unit=" notebooks")):
        bar.set_description(source.stem)
        try:
            notebook = run(read(source))
        except CellExecutionError as error:
            sys.exit(f"{source}: a cell failed\n{error}")
        nbformat.write(notebook, notebook_of(source))


if __name__ == "__main__":
    main()
