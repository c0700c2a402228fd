"""Draw a picture of boxes and arrows as SVG, in the one hand of all diagrams of the tutorials.

A picture brings its own page, light or dark as the reader's, so it can be read on any background. Text in backquotes is
code, in a monospaced font; a shape on an arrow, such as [T, D], is too.
"""

import base64
from collections.abc import Sequence
from html import escape

Point = tuple[float, float]

LIGHT = {
    "page": "#ffffff",
    "ink": "#222222",
    "line": "#555555",
    "stream": "#8a63ac",
    "gradient": "#b8442f",
    "neutral": "#f4f4f4",
    "embedding": "#eadcf1",
    "attention": "#fde7c8",
    "norm": "#e8eef7",
    "cap": "#f9d9d5",
    "feed-forward": "#d9efdc",
}
"""The colours by their roles: text and lines, and what a box computes."""

DARK = {
    "page": "#1f2328",
    "ink": "#eceff3",
    "line": "#a3acb8",
    "stream": "#b796d6",
    "gradient": "#f08d78",
    "neutral": "#343a42",
    "embedding": "#4b3a58",
    "attention": "#574423",
    "norm": "#2c3d57",
    "cap": "#5c3531",
    "feed-forward": "#2b4a34",
}
"""The same roles on a dark page."""

STROKES = ("line", "stream", "gradient")
FILLS = ("page", "neutral", "embedding", "attention", "norm", "cap", "feed-forward")


def _rules(palette: dict[str, str]) -> str:
    rules = [f".ink{{fill:{palette['ink']}}}"]
    rules += [f".{name}{{fill:{palette[name]}}}" for name in FILLS]
    rules += [f".{name}{{stroke:{palette[name]}}}.tip-{name}{{fill:{palette[name]}}}" for name in STROKES]
    return "".join(rules)


STYLE = f"{_rules(LIGHT)}@media (prefers-color-scheme:dark){{{_rules(DARK)}}}"


class Drawing:
    """An SVG picture; a notebook shows it, and prints its description where it cannot."""

    def __init__(self, title: str, description: str, width: int, height: int) -> None:
        self.title, self.description, self.width, self.height = title, description, width, height
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, role: str, *lines: str, size: int = 13) -> None:
        """Draw a box in the colour of its role, with lines of text in its middle."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{role} line"/>'
        )
        first = y + height / 2 - (len(lines) - 1) * (size + 4) / 2 + size / 3
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + number * (size + 4), line, size=size)

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        """Draw a dashed frame around what belongs together."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="10" fill="none" class="line" '
            'stroke-dasharray="5 4"/>'
        )

    def cells(
        self, x: float, y: float, width: float, height: float, roles: Sequence[str], texts: Sequence[str]
    ) -> None:
        """Draw an array as cells side by side, each `width` wide."""
        for number, (role, text) in enumerate(zip(roles, texts, strict=True)):
            left = x + number * width
            self._parts.append(
                f'<rect x="{left:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{role} line"/>'
            )
            if text:
                self.text(left + width / 2, y + height / 2 + 4.5, text)

    def arrow(
        self, *points: Point, shape: str = "", at: Point | None = None, kind: str = "line", wide: int = 1
    ) -> None:
        """Draw an arrow through the points, with the shape of what it carries.

        The shape is beside the middle of the first piece, or its base line is centred on the point `at`.
        """
        self.line(*points, kind=kind, wide=wide, tip=True)
        (x0, y0), (x1, y1) = points[:2]
        if at:
            self.text(*at, f"`{shape}`", size=12)
        elif shape and x0 == x1:
            self.text(x0 + 7, (y0 + y1) / 2 + 4, f"`{shape}`", size=12, anchor="start")
        elif shape:
            self.text((x0 + x1) / 2, y0 - 6, f"`{shape}`", size=12)

    def line(self, *points: Point, kind: str = "line", wide: int = 1, tip: bool = False, dashed: bool = False) -> None:
        """Draw a line through the points."""
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        end = f' marker-end="url(#{kind})"' if tip else ""
        end += ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<path d="M{path}" fill="none" stroke-width="{1.5 * wide:g}" class="{kind}"{end}/>')

    def shape(self, path: str, role: str) -> None:
        """Fill a closed path, in SVG's letters."""
        self._parts.append(f'<path d="{path}" class="{role} line"/>')

    def circle(self, x: float, y: float, radius: float, role: str, text: str = "") -> None:
        """Draw a circle, with a text in it."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="{role} line"/>')
        if text:
            self.text(x, y + 5, text, size=15)

    def text(
        self, x: float, y: float, text: str, *, size: int = 13, anchor: str = "middle", bold: bool = False
    ) -> None:
        """Write one line, whose base line is at y."""
        style = ' font-weight="bold"' if bold else ""
        if text.startswith("`"):
            style += ' font-family="Menlo, Consolas, monospace"'
            size = min(size, 12)
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" class="ink"{style}>'
            f"{escape(text.strip('`'))}</text>"
        )

    @property
    def svg(self) -> str:
        """Return the picture as the text of an SVG file."""
        tips = "".join(
            f'<marker id="{kind}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L10 5L0 10z" class="tip-{kind}"/></marker>'
            for kind in STROKES
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" font-family="Helvetica, Arial, sans-serif">',
                f"<title>{escape(self.title)}</title>",
                f"<desc>{escape(self.description)}</desc>",
                f"<style>{STYLE}</style>",
                f"<defs>{tips}</defs>",
                f'<rect width="{self.width}" height="{self.height}" rx="10" class="page"/>',
                *self._parts,
                "</svg>\n",
            ]
        )

    def _repr_html_(self) -> str:
        # An image and not the SVG itself, which JupyterLab does not show in a notebook that it does not trust yet.
        data = base64.b64encode(self.svg.encode()).decode()
        alt = escape(f"{self.title}. {self.description}", quote=True)
        return f'<img src="data:image/svg+xml;base64,{data}" alt="{alt}" width="{self.width}">'

    def __repr__(self) -> str:
        return f"{self.title}. {self.description}"
