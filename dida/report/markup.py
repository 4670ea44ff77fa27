"""HTML and SVG as a tree of elements: what is text is escaped, whatever it holds."""

from collections.abc import Iterable
from xml.etree.ElementTree import Element, tostring

Content = Element | str | None


def element(tag: str, *content: Content, **attributes: object) -> Element:
    """An element. `class_` is its class, and view_box="..." of SVG keeps its capital; None leaves an attribute out."""
    made = Element(tag, {_name(key): str(value) for key, value in attributes.items() if value is not None})
    for part in content:
        append(made, part)
    return made


def append(parent: Element, part: Content) -> None:
    """Add an element, or text behind what is there."""
    if isinstance(part, Element):
        parent.append(part)
    elif part and len(parent):
        parent[-1].tail = (parent[-1].tail or "") + part
    elif part:
        parent.text = (parent.text or "") + part


def make_table(head: Iterable[Content], rows: Iterable[Iterable[Content | Element]], **attributes: object) -> Element:
    """A table in a box that scrolls where it is too wide; the first cell of a row is its head."""
    body = element("tbody")
    for row in rows:
        first, *others = row
        body.append(element("tr", element("th", first, scope="row"), *(_cell(cell) for cell in others)))
    top = element("thead", element("tr", *(element("th", cell, scope="col") for cell in head)))
    return element("div", element("table", top, body, **attributes), class_="wide")


def _cell(content: Content) -> Element:
    return content if isinstance(content, Element) and content.tag == "td" else element("td", content)


def document(root: Element) -> str:
    """The text of an HTML file."""
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _name(key: str) -> str:
    if key == "view_box":
        return "viewBox"
    return key.rstrip("_").replace("_", "-")
