"""Figures as SVG inside a page: text stays text, and the page's style gives the colours."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from ris_pipeline.report.charts import Theme

# Colours that stand for names: to_svg puts var(--name) in their place.
_NAMES = {
    "#0000a0": "ink", "#0000a1": "muted", "#0000a2": "grid", "#0000a3": "paper",
    **{f"#0000b{i}": f"series-{i + 1}" for i in range(6)},
}  # fmt: skip
_PLACES = {name: place for place, name in _NAMES.items()}
PAGE = Theme(
    _PLACES["ink"], _PLACES["muted"], _PLACES["grid"], _PLACES["paper"],
    tuple(_PLACES[f"series-{i + 1}"] for i in range(6)),
)  # fmt: skip
_SVG, _XLINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure drawn with the theme PAGE as an <svg> element that a screen reader calls by `description`.

    `name` is a word that no other figure of the page has; it keeps their ids apart.
    """
    file = io.StringIO()
    # A fixed salt: the same figure gives the same text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(file.getvalue())
    # Its only style rule is for `*` and would hold in the whole page.
    for parent in root.iter():
        for child in [one for one in parent if one.tag == f"{{{_SVG}}}style"]:
            parent.remove(child)
    referred = _references(root)
    for element in root.iter():
        _adapt(element, name, referred)
    root.set("role", "img")
    root.set("aria-label", description)
    root.set("style", f"max-width: {root.attrib.pop('width')}")
    del root.attrib["height"]
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(root: ElementTree.Element) -> set[str]:
    text = " ".join(value for element in root.iter() for value in element.attrib.values())
    return set(re.findall(r"#([\w.-]+)", text))


def _adapt(element: ElementTree.Element, name: str, referred: set[str]) -> None:
    """Prefix the ids that are referred to, drop the others, name the colours and leave the font to the page."""
    own = element.attrib.pop("id", None)
    if own in referred:
        element.set("id", f"{name}-{own}")
    if _XLINK in element.attrib:
        element.set(_XLINK, element.attrib[_XLINK].replace("#", f"#{name}-", 1))
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{name}-", 1))
    style = element.attrib.get("style")
    if style:
        style = re.sub(r"font-family:[^;]*;?\s*", "", style)
        element.set("style", re.sub(r"#0000[ab]\d", lambda match: f"var(--{_NAMES[match.group()]})", style))
