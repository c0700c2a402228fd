"""The site of tutorials/browser/build.py, in a real browser: it shows the tutorials, its Python starts, and it loads
what they import.

Pyodide's core comes from npm, and the pure Python that a notebook's kernel needs from PyPI. NumPy for Pyodide is in no
registry: the tutorials themselves run only where the network of its own distribution is reached.
"""

import hashlib
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.support.by_path import module_at
from tests.support.chromium import CHROMIUM, QUIET

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
MINUTE = 60_000  # in milliseconds, as playwright counts

# A figure that needs no matplotlib, which is in no registry either, from a module of `support`, which needs NumPy.
SLIDER = """
import sys, types

class Figure:
    def _repr_html_(self):
        return f"<p>{self.height} m</p>"

plt = types.ModuleType("pyplot")
plt.figure, plt.close = Figure, id
sys.modules |= {"matplotlib": types.ModuleType("matplotlib"), "matplotlib.pyplot": plt}
sys.path.append("support")
from sliders import Slider, explore
explore(lambda figure, height: setattr(figure, "height", height), height=Slider("height (m)", 2, 1, 9))
"""


@pytest.fixture(scope="module")
def build():
    return module_at(ROOT / "tutorials/browser/build.py")


@pytest.fixture(scope="module")
def pyodide(build, tmp_path_factory):
    """A folder with Pyodide's core and the packages that a kernel needs to start."""
    version = build.PYODIDE_CDN_URL.split("/v")[1].split("/")[0]
    folder = tmp_path_factory.mktemp("npm")
    fetch("npm", "pack", f"pyodide@{version}", cwd=folder)
    fetch("tar", "-xzf", f"pyodide-{version}.tgz", cwd=folder)
    folder = folder / "package"
    lock = json.loads((folder / "pyodide-lock.json").read_text())
    packages = lock["packages"]
    packages["comm"] = packages["traitlets"] | {
        "name": "comm",
        "version": "0.2.3",
        "file_name": "comm-0.2.3-py3-none-any.whl",
        "imports": ["comm"],
    }
    names = {"micropip", "packaging", "comm", "jedi", "parso", "ipython"}
    names |= {name.replace("_", "-") for name in packages["ipython"]["depends"]}
    wanted = [f"{name}=={packages[name]['version']}" for name in sorted(names)]
    python = ".".join(lock["info"]["python"].split(".")[:2])
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
    fetch(*pip, "--python-version", python, *wanted, cwd=folder)
    for name in names:  # Pyodide has built the same versions itself: their bytes are others
        wheel = folder / packages[name]["file_name"]
        packages[name]["sha256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "pyodide-lock.json").write_text(json.dumps(lock))
    return folder


def fetch(*command, cwd):
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"{command[0]}: {error}, expected npm and a network")


@pytest.fixture(scope="module")
def site(build, pyodide, tmp_path_factory):
    """The site with that Pyodide, built by the command and served from this machine."""
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, build.__file__, "-o", folder, "--pyodide", pyodide]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with served(folder) as url:
        yield SimpleNamespace(folder=folder, url=url)


class served:
    """A server of a folder's files, with `window.jupyterapp` for the tests to talk to."""

    def __init__(self, folder):
        settings = folder / "jupyter-lite.json"
        values = json.loads(settings.read_text())
        values["jupyter-config-data"]["exposeAppInBrowser"] = True
        settings.write_text(json.dumps(values))
        handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(site, browser):
    with offline_page(browser, site.url) as page:
        yield page


@pytest.fixture(scope="module")
def notebook_page(site, browser):
    """The first tutorial, opened once for all tests that ask its kernel."""
    with offline_page(browser, site.url) as page:
        open_notebook(page, site.url, NOTEBOOKS[0])
        yield page


@contextmanager
def offline_page(browser, url):
    """A page that reaches nothing but the site; `page.elsewhere` lists what it asked of others."""
    context = browser.new_context()
    elsewhere = []

    def refuse(route):
        elsewhere.append(route.request.url)
        route.abort()

    context.route(lambda asked: not asked.startswith(url), refuse)
    page = context.new_page()
    page.elsewhere = elsewhere
    yield page
    context.close()


def open_notebook(page, url, notebook):
    page.goto(f"{url}/notebooks/index.html?path=tutorials/{notebook.name}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=MINUTE)


def run(page, code):
    """What the page's kernel answers to some code: its printed text, its results and its errors."""
    page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session?.kernel", timeout=MINUTE)
    answers = page.evaluate(
        """async code => {
            const future = jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code});
            const answers = [];
            future.onIOPub = message => answers.push(message.content);
            await future.done;
            return answers;
        }""",
        code,
    )
    parts = [
        answer.get("text") or answer.get("data", {}).get("text/plain") or answer.get("evalue") or ""
        for answer in answers
    ]
    return "".join(parts)


def test_the_first_page_leads_to_every_tutorial(page, site):
    page.goto(f"{site.url}/index.html")
    links = page.get_by_role("listitem").get_by_role("link")
    assert links.count() == len(NOTEBOOKS) > 0
    for number, notebook in enumerate(NOTEBOOKS):
        title = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"][0]
        assert links.nth(number).inner_text() == title.removeprefix("# ").strip()
        assert links.nth(number).get_attribute("href").endswith(f"path=tutorials/{notebook.name}")
    links.first.click()
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=MINUTE)
    assert page.elsewhere == []


def test_a_tutorial_shows_what_it_has_stored(page, site):
    open_notebook(page, site.url, NOTEBOOKS[0])
    stored = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    outputs = [output for cell in stored["cells"] for output in cell.get("outputs", [])]
    printed = next("".join(output["text"]) for output in outputs if "text" in output)
    page.wait_for_selector(".jp-OutputArea-output", timeout=MINUTE)
    assert printed.strip() in page.locator(".jp-OutputArea-output").first.inner_text()
    page.wait_for_selector(".jp-OutputArea-output img", timeout=MINUTE, state="attached")


def test_the_links_to_the_code_lead_to_it(site):
    for place in ("gemma_np/model/rms_norm.py", *(f"tutorials/{notebook.name}" for notebook in NOTEBOOKS)):
        assert (site.folder / "files" / place).exists()


def test_each_output_is_one_text(site):
    found = 0
    for path in (site.folder / "files/tutorials").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            texts = [output["data"].get("text/html", "") for output in cell.get("outputs", []) if "data" in output]
            assert all(isinstance(text, str) for text in texts)
            found += sum(map(bool, texts))
    assert found > 0


def test_its_python_starts(notebook_page):
    assert run(notebook_page, "1 + 1") == "2"
    assert run(notebook_page, "import sys; print(sys.platform)") == "emscripten\n"


def test_an_import_loads_the_package_and_what_it_requires(notebook_page, build):
    assert "numpy" in run(notebook_page, "import gemma_np")  # no such module: it is not in the registries
    assert run(notebook_page, "import importlib.metadata as m; print(m.version('gemma-np'))") == "0.1.0\n"
    wheels = [url.removeprefix(f"{build.PYODIDE_CDN_URL}/") for url in notebook_page.elsewhere]
    for name in ("numpy", "sentencepiece", "safetensors", "tqdm", "ml_dtypes", "matplotlib"):
        assert any(wheel.startswith(f"{name}-") for wheel in wheels), f"{name} was not asked for"
    assert run(notebook_page, "import importlib.util as u; print(bool(u.find_spec('ipywidgets')))") == "True\n"
    assert not any(wheel.startswith("ipywidgets-") for wheel in wheels)  # it is in the site


def test_a_slider_draws_its_figure_again(notebook_page):
    notebook_page.evaluate(
        """async code => {
            await jupyterapp.commands.execute("notebook:insert-cell-above");
            await jupyterapp.commands.execute("notebook:replace-selection", {text: code});
            await jupyterapp.commands.execute("notebook:run-cell");
        }""",
        SLIDER,
    )
    notebook_page.get_by_text("2 m", exact=True).wait_for(timeout=MINUTE)
    slider = notebook_page.get_by_role("slider")
    assert "height (m)" in notebook_page.locator(".widget-slider").inner_text()
    assert [slider.get_attribute(f"aria-value{end}") for end in ("min", "now", "max")] == ["1.0", "2.0", "9.0"]
    slider.press("ArrowRight")
    notebook_page.get_by_text("3 m", exact=True).wait_for(timeout=MINUTE)
    assert notebook_page.get_by_text("2 m", exact=True).count() == 0


def test_a_notebook_finds_the_support_beside_it(notebook_page):
    code = "import importlib.util; print(importlib.util.find_spec('support').origin)"
    assert run(notebook_page, code) == "/drive/tutorials/support/__init__.py\n"


def test_there_is_no_warning_about_threads(notebook_page):
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.warn("tqdm:disabling monitor support")
    warnings.warn("another")
print([str(warning.message) for warning in caught])
"""
    assert run(notebook_page, code) == "['another']\n"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_tutorial_runs(whole_site, browser, notebook):
    context = browser.new_context()
    page = context.new_page()
    open_notebook(page, whole_site, notebook)
    finished, errors = page.evaluate(
        """async () => {
            const widget = jupyterapp.shell.currentWidget;
            await widget.sessionContext.ready;
            const finished = await jupyterapp.commands.execute("notebook:run-all-cells");
            const outputs = widget.content.model.toJSON().cells.flatMap(cell => cell.outputs || []);
            return [finished, outputs.filter(output => output.output_type === "error").map(output => output.evalue)];
        }"""
    )
    context.close()
    assert errors == []
    assert finished


@pytest.fixture(scope="module")
def whole_site(build, tmp_path_factory):
    """The site as it is published: Pyodide comes from its own network."""
    try:
        urlopen(f"{build.PYODIDE_CDN_URL}/pyodide-lock.json", timeout=10).close()
    except (URLError, TimeoutError) as error:
        pytest.skip(f"{build.PYODIDE_CDN_URL}: {error}, expected it to be reached")
    folder = tmp_path_factory.mktemp("whole") / "site"
    subprocess.run([sys.executable, build.__file__, "-o", folder], check=True)
    with served(folder) as url:
        yield url


def test_a_package_that_pyodide_lacks_is_named(build):
    packages = {build.canonicalize_name(requirement.name): {"version": "999"} for requirement in build.requirements()}
    build.check_requirements({"packages": packages})
    with pytest.raises(SystemExit, match=r"numpy: 1\.26 in this Pyodide, expected numpy>=2"):
        build.check_requirements({"packages": packages | {"numpy": {"version": "1.26"}}})
    del packages["ml-dtypes"]
    with pytest.raises(SystemExit, match="ml_dtypes: not there in this Pyodide, expected ml_dtypes>="):
        build.check_requirements({"packages": packages})


def test_without_a_network_it_says_what_to_do(build, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "PYODIDE_CDN_URL", "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match="expected a network, or an unpacked Pyodide as --pyodide FOLDER"):
        build.read_lock(None)
    with pytest.raises(SystemExit, match="No such file"):
        build.read_lock(tmp_path)


def test_an_existing_folder_is_not_overwritten(build, tmp_path):
    done = subprocess.run([sys.executable, build.__file__, "-o", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path}: exists, expected a new folder" in done.stderr
