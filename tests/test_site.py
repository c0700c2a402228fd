"""The documentation as a site: no dead links, a way back from every page, readable on every screen."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from tests.support.chromium import CHROMIUM, QUIET
from tests.support.site import build_site, served

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent
PAGES = [
    "",
    *(f"docs/{path.stem}/" for path in sorted((ROOT / "docs").glob("*.md"))),
    "tutorials/",
    *(f"tutorials/{path.stem}/" for path in sorted((ROOT / "tutorials").glob("*.ipynb"))),
    "tutorials/glossary/",
    "tutorials/capture_another_framework/",
    "tutorials/experiments/",
    "gemma_np/",
    "gemma_np/config/",
    "gemma_np/model/",
    "gemma_np/model/attention/",
    "gemma_np/oracle/diagnosis/",
    "tests/",
    "tests/support/tolerances/",
    ".github/CONTRIBUTING/",
    "CHANGELOG/",
]
"""Every kind of page, and each one with tables, formulas or figures."""


class Links(NamedTuple):
    """What a page links to, as addresses from the root of the site, and the anchors that it has."""

    targets: list[str]
    anchors: set[str]


def read_links(address: str, html: str) -> Links:
    """The links and anchors of the page at that address."""
    links = Links([], set())

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            for name, value in attributes:
                if name in ("href", "src"):
                    links.targets.append(urljoin(f"http://site/{address}", value))
                elif name in ("id", "name"):
                    links.anchors.add(value)

    Parser().feed(html)
    return links


def dead_links(pages: dict[str, str], files: set[str]) -> list[str]:
    """The links between these pages, by address, that lead nowhere; other files have no anchors."""
    read = {address: read_links(address, html) for address, html in pages.items()}
    dead = []
    for address, (targets, _) in read.items():
        for target in targets:
            if target.startswith("http://site/"):
                place, anchor = map(unquote, urldefrag(target.removeprefix("http://site/")))
                if place not in files and (place not in read or (anchor and anchor not in read[place].anchors)):
                    dead.append(f"{address}: {place}#{anchor}")
    return dead


@pytest.fixture(scope="module")
def pages():
    site = build_site()
    found = site.rglob("*.html")
    return {
        path.relative_to(site).as_posix().removesuffix("index.html"): path.read_text(encoding="utf-8") for path in found
    }


def test_no_link_is_dead(pages):
    site = build_site()
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.suffix != ".html"}
    assert len(pages) > 300
    assert dead_links({address: html for address, html in pages.items() if address != "404.html"}, files) == []


def test_a_dead_link_is_found():
    pages = {"": '<a href="a/#x">', "a/": '<p id="x"><a href=".."><a href="../b/"><a href="#y"><img src="c.svg">'}
    assert dead_links(pages, set()) == ["a/: b/#", "a/: a/#y", "a/: a/c.svg#"]
    assert dead_links(pages, {"a/c.svg"}) == ["a/: b/#", "a/: a/#y"]


def test_every_page_leads_back(pages):
    lost = [address for address, html in pages.items() if "http://site/" not in read_links(address, html).targets]
    assert [address for address in lost if address != "404.html"] == []


def test_every_document_is_in_the_navigation():
    nav = (ROOT / "docs/mkdocs.yml").read_text(encoding="utf-8")
    documents = [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "tutorials").glob("*.md"),
        *(ROOT / "tutorials").glob("*.ipynb"),
    ]
    assert [path.name for path in documents if path.relative_to(ROOT).as_posix() not in nav] == []


def test_formulas_are_mathml(pages):
    formulas = "".join(re.findall("<math.*?</math>", "".join(pages.values()), re.DOTALL))
    assert formulas.count("<math") > 300
    assert re.findall(r".{0,60}(?:\\|<mi>(?:&|\$)<|<merror).{0,60}", formulas) == []
    notebooks = {address: html for address, html in pages.items() if re.match(r"tutorials/\d", address)}
    assert [address for address, html in notebooks.items() if "arithmatex" in html or "$$" in html] == []


def test_a_tutorial_links_to_the_line_of_the_source(pages):
    lines = (ROOT / "gemma_np/model/rms_norm.py").read_text(encoding="utf-8").splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if line.startswith("def rms_norm(")]
    links = read_links("tutorials/04_rms_norm/", pages["tutorials/04_rms_norm/"]).targets
    assert f"http://site/gemma_np/model/rms_norm/#L{number}" in links
    [shown] = re.findall(rf'id="L{number}".*', pages["gemma_np/model/rms_norm/"])
    assert re.sub("<.*?>", "", shown.partition(">")[2]) == lines[number - 1].replace(">", "&gt;")


def test_a_tutorial_folds_its_checks_and_its_hints(pages):
    page = pages["tutorials/04_rms_norm/"]
    folded = re.findall("<details>.*?</details>", page, re.DOTALL)
    checks = [part for part in folded if "<summary>Check</summary>" in part]
    assert checks
    assert all('class="k">assert<' in part or "assert_" in part for part in checks)
    assert "assert" not in re.sub("<details>.*?</details>", "", page.partition('id="exercises"')[0], flags=re.DOTALL)
    assert any("<code>" in part and "Hint" in part for part in folded)
    assert not [part for part in folded if "`" in part]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with served(build_site()) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        browser.address = address
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Open pages of the site in a new window; fail if they write to the console or ask anything of other sites."""
    said = []

    def open_window(width, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, base_url=browser.address)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((browser.address, "data:")) or said.append(asked.url))
        return page

    yield open_window
    for context in browser.contexts:
        context.close()
    assert said == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_the_screen(opened, width, scheme):
    page = opened(width, scheme)
    wide = []
    for address in PAGES:
        page.goto(address)
        if page.evaluate("document.documentElement.scrollWidth") > width:
            wide.append(address)
    assert wide == []


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_colours_follow_the_system_and_can_be_read(opened, scheme, dark):
    page = opened(1280, scheme)
    page.goto("tutorials/05_positions_and_rope/")
    assert (luminance(page, "body", "background-color") < 0.2) == dark
    for element in ("article p", "article p a", "article .language-python code", "article math", "nav li a"):
        light, low = sorted(
            (luminance(page, element, "color"), luminance(page, element, "background-color")), reverse=True
        )
        assert (light + 0.05) / (low + 0.05) > 4.5, element


def luminance(page, element, property):
    """The relative luminance of WCAG, in [0, 1], of a colour: of a background, that of what shows through."""
    channels = page.evaluate(
        """([element, property]) => {
            const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
            const chain = [];
            for (let node = document.querySelector(element); node; node = node.parentElement) chain.unshift(node);
            for (const node of property == "color" ? chain.slice(-1) : chain) {
                context.fillStyle = getComputedStyle(node)[property];
                context.fillRect(0, 0, 1, 1);
            }
            return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)].map(value => value / 255);
        }""",
        [element, property],
    )
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(
    ("words", "address"), [("soft_cap", "gemma_np/model/soft_cap/"), ("speculative decoding", "docs/generate/")]
)
def test_the_search_finds(opened, width, words, address):
    page = opened(width)
    page.goto("")
    if width == 400:
        page.locator("label[for=__search].md-header__button").click()
    page.get_by_role("textbox", name="Search").fill(words)
    result = page.locator(f".md-search-result__link[href*='{address}']").first
    result.wait_for()
    result.click()
    page.wait_for_url(f"**/{address}**")


LEADS_HOME = """home => [...document.links].some(link => {
    const {left, top, right, bottom, width} = link.getBoundingClientRect();
    return link.href == home && width && left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight;
})"""
"""Whether a link to the first page is in view."""


@pytest.mark.browser
def test_a_page_leads_home_on_a_small_screen(opened, browser):
    page = opened(400)
    for address in PAGES[1:]:
        page.goto(address)
        if not page.evaluate(LEADS_HOME, browser.address):
            page.locator("label[for=__drawer].md-header__button").click()
            page.wait_for_function(LEADS_HOME, arg=browser.address, timeout=5_000)
