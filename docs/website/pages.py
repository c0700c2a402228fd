"""Make a page of each document, notebook, Python file and folder of the repository. MkDocs calls the `on_` functions.

A page has the path of its file, so links between files become links between pages. The page of a module is its
reference, and its source; that of another Python file its source; that of a folder a table of its files.
"""

import ast
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from posixpath import relpath

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
PLACES = ("README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md", "docs", "gemma_np", "tests", "tutorials")
LINKED = (".ci/run", ".pre-commit-config.yaml", "tests/mutation/equivalent.json")
"""Files that pages link to, and that have no other reason to be pages."""


class PageFile(File):
    """A file that becomes a page, whatever its suffix."""

    def is_documentation_page(self) -> bool:
        """Return true."""
        return True


def on_config(config: MkDocsConfig) -> None:
    """Add the modules to the navigation, below the map."""
    reference = next(section for section in config.nav if "Reference" in section)
    reference["Reference"] = [reference["Reference"], *modules()]


def modules() -> list:
    """Return the navigation of all modules, in the order of the map."""
    packages: dict[str, list] = {"gemma_np": [{"gemma_np": "gemma_np"}]}

    def entries(package: str) -> list:
        if package not in packages:
            packages[package] = [package]
            above, _, name = package.rpartition("/")
            entries(above).append({name: packages[package]})
        return packages[package]

    for package, name in re.findall(r"\]\(\.\./(gemma_np.*)/(.*)\.py\)", (ROOT / "docs/map.md").read_text("utf-8")):
        if name != "__init__":
            entries(package).append({name: f"{package}/{name}.py"})
    return packages["gemma_np"]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages and the figures."""
    for path in shown():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".svg":
            files.append(File.generated(config, name, abs_src_path=str(path)))
            continue
        text, figures = notebook(path) if path.suffix == ".ipynb" else (markdown(path, name), {})
        file = PageFile.generated(config, name, content=text, inclusion=InclusionLevel.INCLUDED)
        if path.is_dir():
            file.name, file.dest_uri = "index", f"{name}/index.html"
        files.append(file)
        for figure, content in figures.items():
            files.append(File.generated(config, f"{relpath(path.parent, ROOT)}/{figure}", content=content))


def shown() -> Iterator[Path]:
    """Yield all files and folders that are part of the site."""
    yield from (ROOT / name for name in LINKED)
    for place in PLACES:
        for path in (ROOT / place, *(ROOT / place).rglob("*")):
            if path.is_dir():
                if any(path.rglob("*.py")) and not (path / "README.md").exists():
                    yield path
            elif path.suffix in (".md", ".ipynb", ".svg", ".py") and path.name != "__init__.py":
                yield path


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook in Markdown, with its checks and hints folded, and its figures by name."""
    read = nbformat.read(path, as_version=4)
    for cell in read.cells:
        if "check" in cell.metadata.get("tags", ()):
            cell.cell_type = "markdown"
            cell.source = f"<details><summary>Check</summary>\n\n```python\n{cell.source}\n```\n\n</details>"
    text, resources = MarkdownExporter().from_notebook_node(read)
    text = text.replace("<details>", "<details markdown>")  # it is folded, and its content is Markdown
    text = re.sub(r"!\[png\]\((.*?)\)", rf"![Figure]({path.stem}/\1)", text)
    text = re.sub(r'<a href="(.*?)">(.*?)</a>\s*<pre .*?>(.*?)</pre>', lines_of_source, text, flags=re.DOTALL)
    return text, {f"{path.stem}/{name}": content for name, content in resources["outputs"].items()}


def lines_of_source(match: re.Match[str]) -> str:
    """Return what `support.lines` shows in HTML as Markdown: MkDocs checks its link and colours its code."""
    link, title, code = match.groups()
    return f"[{title}]({link})\n\n```python\n{unescape(code)}\n```"


def markdown(path: Path, name: str) -> str:
    """Return a document as it is, and of any other file or folder the page about it in Markdown."""
    if path.suffix == ".md":
        return path.read_text("utf-8")
    if name.startswith("gemma_np"):
        module = name.removesuffix(".py").replace("/", ".")
        parts = [f"# {module}", f"::: {module}"]
    else:
        parts = ["---\nsearch: {exclude: true}\n---", f"# {name}", folders_around(name)]
    if path.is_dir():
        parts.append(table_of_files(path))
        path /= "__init__.py"
    if path.exists() and (source := path.read_text("utf-8")):
        language = {".py": "python", ".yaml": "yaml", ".json": "json"}.get(path.suffix, "sh")
        parts.append("## Source {data-search-exclude}")
        parts.append(f'~~~~{{.{language} linenums="1"}}\n{source}~~~~')
    return "\n\n".join(parts)


def folders_around(name: str) -> str:
    """Return links to the folders that a file is in, from the outermost."""
    here = name.rpartition("/")[0]
    links = []
    for folder in reversed(Path(name).parents):
        if any((ROOT / folder).glob("*.py")) or (ROOT / folder / "README.md").exists():
            target = folder / "README.md" if (ROOT / folder / "README.md").exists() else folder
            links.append(f"[{folder.name or 'gemma_np'}]({relpath(target, here or '.')})")
    return " / ".join(links)


def table_of_files(folder: Path) -> str:
    """Return a table of the files and folders in a folder, with what the first line of each docstring says."""
    rows = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name != "__init__.py":
            says = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
            rows.append(f"| [{path.name}]({folder.name}/{path.name}) | {says} |")
        elif path.is_dir() and any(path.rglob("*.py")):
            rows.append(f"| [{path.name}]({folder.name}/{path.name}) | |")
    return "\n".join(["| file | content |", "|---|---|", *rows])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link to the page of a package instead of its `__init__.py`; show no list of the pages of a section of one."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    return re.sub(r"(\]\([^)\s]*)/__init__\.py\)", r"\1)", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name the lines of a source as code hosts do, `#L25`, and write formulas as MathML, which needs no script."""
    html, heading, source = html.partition('id="source"')
    source = re.sub(r"__codelineno-\d+-(\d+)", r"L\1", source)
    page.present_anchor_ids |= set(re.findall(r'id="(L\d+)"', source))
    html = re.sub(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', formula, html, flags=re.DOTALL)
    return html + heading + source


def formula(match: re.Match[str]) -> str:
    """Return a formula of LaTeX in MathML."""
    element, latex = match.groups()
    display = "block" if element == "div" else "inline"
    latex = unescape(latex).replace("{aligned}", "{align*}")  # the same in the middle of a page
    mathml = convert(latex, display=display).replace(r"\_", "_")
    return f'<{element} class="formula">{mathml}</{element}>'
