"""Build the tutorials as a static site that runs in the browser, with JupyterLite and Pyodide; README.md says more.

    python tutorials/browser/build.py -o site
    python -m http.server --directory site

Needs pip install -e ".[browser]".
"""

import argparse
import hashlib
import html
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

try:
    import ipywidgets
    import jupyter_server  # noqa: F401  (JupyterLite lists the site's files with it)
    from jupyterlite_pyodide_kernel.constants import PYODIDE_CDN_URL, PYODIDE_KERNEL_PLUGIN_ID
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError as error:
    sys.exit(f'{error.name}: not installed, expected from: pip install -e ".[browser]"')

REPOSITORY = Path(__file__).resolve().parents[2]
TUTORIALS = REPOSITORY / "tutorials"

# Pyodide reads our list of packages instead of its own, and tqdm does not warn that a browser has no threads.
PYODIDE_OPTIONS = {
    "lockFileURL": "./static/packages/pyodide-lock.json",
    "env": {"PYTHONWARNINGS": "ignore:tqdm"},
}
SETTINGS = {
    "jupyter-lite-schema-version": 0,
    "jupyter-config-data": {
        "appName": "gemma_np",
        "litePluginSettings": {PYODIDE_KERNEL_PLUGIN_ID: {"loadPyodideOptions": PYODIDE_OPTIONS}},
    },
}

# The script is empty, but JupyterLite also looks for its settings on the first page.
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>gemma_np: the tutorials</title>
<script id="jupyter-config-data" type="application/json">{{}}</script>
<style>body {{ font: 18px/1.6 sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em }}</style>
<h1>gemma_np: the tutorials</h1>
<p>They run in this browser, without any installation. The first cell takes a while: it loads Python and NumPy.</p>
<ul>
{links}
</ul>
<p><a href="lab/index.html">All files, in JupyterLab</a></p>
</html>
"""


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(
        description="Build the tutorials as a static site that runs in the browser.",
        epilog="example: python tutorials/browser/build.py -o site && python -m http.server --directory site",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("site"), help="a new folder (default: site)")
    parser.add_argument(
        "--pyodide",
        type=Path,
        metavar="FOLDER",
        help=f"an unpacked Pyodide to serve with the site; the browser loads everything else from {PYODIDE_CDN_URL}",
    )
    options = parser.parse_args()
    notebooks = sorted(TUTORIALS.glob("*.ipynb"))
    if options.output.exists():
        parser.error(f"{options.output}: exists, expected a new folder")
    if not notebooks:
        parser.error(f"{TUTORIALS}: no notebooks, make them with: python tutorials/build.py")

    lock = read_lock(options.pyodide)  # first, since it fails without a network
    check_requirements(lock)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        site = work / "site"
        wheels = [build_wheel(work / "wheel"), download_widgets(work / "widgets")]
        run_jupyterlite(work / "lite", site, options.pyodide)
        add_packages(site / "static/packages", lock, wheels)
        write_page(site / "index.html", notebooks)
        shutil.move(site, options.output)
    print(f"{options.output}: {len(notebooks)} tutorials; python -m http.server --directory {options.output}")


def read_lock(pyodide: Path | None) -> dict[str, Any]:
    """Return Pyodide's list of packages with the location of each: in that folder, or online."""
    try:
        if pyodide:
            lock = json.loads((pyodide / "pyodide-lock.json").read_text())
        else:
            lock = json.load(urlopen(f"{PYODIDE_CDN_URL}/pyodide-lock.json"))
    except (URLError, FileNotFoundError) as error:
        sys.exit(f"Pyodide's list of packages: {error}, expected a network, or an unpacked Pyodide as --pyodide FOLDER")
    for package in lock["packages"].values():
        file = package["file_name"]
        is_local = pyodide and (pyodide / file).exists()
        package["file_name"] = f"../pyodide/{file}" if is_local else f"{PYODIDE_CDN_URL}/{file}"
    return lock


def requirements() -> list[Requirement]:
    """Return the packages of Pyodide that the tutorials import: the requirements of gemma_np, and matplotlib."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["plot"]]


def check_requirements(lock: dict[str, Any]) -> None:
    """Exit when a required package is missing from Pyodide, or too old."""
    for requirement in requirements():
        package = lock["packages"].get(canonicalize_name(requirement.name))
        if not package or not requirement.specifier.contains(package["version"], prereleases=True):
            found = package["version"] if package else "not there"
            sys.exit(f"{requirement.name}: {found} in this Pyodide, expected {requirement} (try a newer one)")


def build_wheel(folder: Path) -> Path:
    """Build the wheel of gemma_np from a copy, which leaves the repository clean."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "gemma_np", source / "gemma_np", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def download_widgets(folder: Path) -> Path:
    """Download the wheel of ipywidgets that belongs to the installed extension, which JupyterLite adds to the page."""
    exact = f"ipywidgets=={ipywidgets.__version__}"
    run("pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, exact)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run_jupyterlite(folder: Path, site: Path, pyodide: Path | None) -> None:
    """Build the site. Its files have the layout of the repository, so links of the notebooks to the code work."""
    ignored = shutil.ignore_patterns("__pycache__", "assets", "browser", ".*")
    shutil.copytree(REPOSITORY / "gemma_np", folder / "files/gemma_np", ignore=ignored)
    shutil.copytree(TUTORIALS, folder / "files/tutorials", ignore=ignored)
    for notebook in (folder / "files/tutorials").glob("*.ipynb"):
        join_lines(notebook)
    if pyodide:
        shutil.copytree(pyodide, folder / "static/pyodide")
    (folder / "jupyter-lite.json").write_text(json.dumps(SETTINGS))
    options = ("--no-sourcemaps", "--no-unused-shared-packages")
    run("jupyterlite_core", "build", "--lite-dir", folder, "--output-dir", site, *options, cwd=folder)


def join_lines(path: Path) -> None:
    """Join the lines of each output of a notebook: JupyterLite's table of contents fails for lists of lines."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            data.update({kind: "".join(lines) for kind, lines in data.items() if kind.startswith("text/")})
    path.write_text(json.dumps(notebook), encoding="utf-8")


def add_packages(folder: Path, lock: dict[str, Any], wheels: list[Path]) -> None:
    """Add gemma_np and ipywidgets, and the list of packages that includes them, to the site.

    Pyodide loads the packages on this list that a cell imports, and their requirements. No cell imports ipywidgets,
    but `support` does, so it is a requirement of gemma_np here. Its own requirement comm comes with the kernel.
    """
    folder.mkdir(parents=True)
    required = {
        "gemma-np": [*(canonicalize_name(requirement.name) for requirement in requirements()), "ipywidgets"],
        "ipywidgets": ["ipython", "traitlets"],
    }
    for wheel in wheels:
        shutil.copy(wheel, folder)
        module, version = wheel.name.split("-")[:2]
        name = canonicalize_name(module)
        lock["packages"][name] = {
            "name": name,
            "version": version,
            "file_name": f"../packages/{wheel.name}",
            "install_dir": "site",
            "package_type": "package",
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "imports": [module],
            "depends": required[name],
            "unvendored_tests": False,
        }
    (folder / "pyodide-lock.json").write_text(json.dumps(lock))


def write_page(path: Path, notebooks: list[Path]) -> None:
    """Write the first page, with a link to each tutorial."""
    links = []
    for notebook in notebooks:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
        title = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), notebook.stem)
        links.append(f'<li><a href="notebooks/index.html?path=tutorials/{notebook.name}">{html.escape(title)}</a></li>')
    path.write_text(PAGE.format(links="\n".join(links)), encoding="utf-8")


def run(module: str, *arguments: object, cwd: Path | None = None) -> None:
    """Run a Python module as a command; exit with its output when it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last_lines = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        sys.exit(f"{module}: failed, expected no error\n{last_lines}")


if __name__ == "__main__":
    main()
