"""How charts look: one style, colours that follow the page from light to dark, and SVG that stands in HTML."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import NamedTuple

from npmerge.reports.page import Figure

INK, SOFT, LINE = "#16181e", "#4d5564", "#dfe2e8"
"""Of text, of axes and labels, of grids: not colours that a figure has otherwise, since they are replaced in the SVG."""

SERIES = ("#2a78d6", "#d9622b", "#178f64", "#7a5bd1", "#c08a00", "#c93c6b", "#2b8ea3", "#6b7280")
"""Of models, in their order: told apart in print and by those who see few colours, with markers besides."""

VARIABLES = {"#000000": "var(--ink)", INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
VARIABLES |= {colour: f"var(--s{k})" for k, colour in enumerate(SERIES, 1)}

DPI = 150
WIDE, SHRINK = 800, 0.72
"""Pixels up to which a chart shrinks with the page, however narrow; of a wider one the part of its width below which its box
scrolls."""


class Drawn(NamedTuple):
    """A figure as bytes of a PNG file and as SVG for a page."""

    png: bytes
    svg: str


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made inside have the style of reports."""
    import matplotlib as mpl  # slow to import, and needed nowhere else

    with mpl.rc_context(_settings()):
        yield


def drawn(figure: Figure) -> Drawn:
    """Draw a figure of a page; the same numbers give the same bytes."""
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts for names in any script
        drawing = figure.draw()
        png, svg = io.BytesIO(), io.StringIO()
        drawing.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        drawing.set_layout_engine("none")  # everything has its place
        drawing.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawn(png.getvalue(), for_page(svg.getvalue(), figure))


def for_page(svg: str, figure: Figure) -> str:
    """SVG of matplotlib as part of a page: with a title and words for those who do not see it, in the colours of the page."""
    root = re.search(r"<svg\b[^>]*>", svg)
    assert root is not None
    width, height = (4 / 3 * float(re.search(rf'\b{name}="([\d.]+)pt"', root[0])[1]) for name in ("width", "height"))  # type: ignore[index]
    box = re.search(r'viewBox="[^"]+"', root[0])
    assert box is not None
    inside = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[root.end() :], flags=re.DOTALL)
    inside = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.name}-", inside)
    for colour, variable in VARIABLES.items():
        inside = inside.replace(colour, variable)
    words = "".join(
        f'<{tag} id="{figure.name}-{tag}">{escape(text.replace("`", ""))}</{tag}>'
        for tag, text in (("title", figure.title), ("desc", figure.words))
    )
    least = f"min-width:{SHRINK * width:.0f}px;" * (width > WIDE)
    size = f"width:100%;{least}max-width:{width:.0f}px"
    return (
        f'<svg class="chart" role="img" aria-labelledby="{figure.name}-title {figure.name}-desc" width="{width:.0f}" '
        f'height="{height:.0f}" {box[0]} style="{size}" xmlns:xlink="http://www.w3.org/1999/xlink">{words}{inside.strip()}'
    )


def _settings() -> dict[str, object]:
    from cycler import cycler

    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "npmerge",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelcolor": SOFT,
        "axes.edgecolor": SOFT,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=SERIES),
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
    }
