"""What every page shares: its style, and pictures in the page's own ink."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Drawn in this colour, then replaced by the page's own: light and dark both fit.
INK: Final = "#123456"
_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headrace",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
}


def page_style() -> AbstractContextManager[None]:
    """Returns the context in which a page's figures are drawn, `svg` included."""
    return mpl.rc_context(_STYLE)


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Writes a page.

    Args:
        path: The HTML file.
        template: Its template, which may include `style.css`.
        values: What the template shows; all text is escaped but `Markup`.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["decimal"] = lambda number, places=3: f"{number:.{places}f}"
    path.write_text(environment.get_template(template.name).render(values), encoding="utf-8")


def svg(figure: Figure, title: str) -> Markup:
    """Returns a figure as inline SVG in the page's own ink, sized by the page."""
    FigureCanvasSVG(figure)
    out = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    label = f'<svg role="img" aria-label="{Markup.escape(title)}"'
    return Markup(text.replace("<svg", label, 1))
