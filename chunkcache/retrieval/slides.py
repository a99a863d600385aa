"""A presentation with the notes of its slides on them, for the converter leaves notes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lxml import etree

from chunkcache.retrieval.package_parts import related, rewritten

if TYPE_CHECKING:
    from chunkcache.retrieval.package_parts import PackageParts

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_BELOW_EMU = 1 << 30  # from the top: below all else, for shapes are read from top to bottom
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"


def with_notes(data: bytes) -> bytes:
    """The presentation, each slide's notes a text box behind its other shapes."""
    return rewritten(data, _rewrite)


def _rewrite(parts: PackageParts) -> None:
    for name in parts.names:
        if not (name.startswith("ppt/slides/") and name.endswith(".xml")):
            continue
        kinds = dict(related(parts, name).values())
        notes, slide = parts.tree(kinds.get("notesSlide", "")), parts.tree(name)
        shapes = slide.find(f".//{_P}spTree") if slide is not None else None
        paragraphs = _paragraphs(notes) if notes is not None else []
        if shapes is not None and paragraphs:
            shapes.append(_text_box(paragraphs))
            parts.change(name)


def _paragraphs(notes: Any) -> list[Any]:
    """Those of the notes' text; a notes page has the slide's picture and number too."""
    return [
        paragraph
        for shape in notes.iter(f"{_P}sp")
        if (place := shape.find(f".//{_P}ph")) is not None and place.get("type") == "body"
        for paragraph in shape.iter(f"{_A}p")
        if "".join(paragraph.itertext()).strip()
    ]


def _text_box(paragraphs: list[Any]) -> Any:
    shape = etree.Element(f"{_P}sp")
    about = etree.SubElement(shape, f"{_P}nvSpPr")
    etree.SubElement(about, f"{_P}cNvPr", id="0", name="notes")
    etree.SubElement(about, f"{_P}cNvSpPr", txBox="1")
    etree.SubElement(about, f"{_P}nvPr")
    frame = etree.SubElement(etree.SubElement(shape, f"{_P}spPr"), f"{_A}xfrm")
    etree.SubElement(frame, f"{_A}off", x="0", y=str(_BELOW_EMU))
    etree.SubElement(frame, f"{_A}ext", cx="1", cy="1")
    body = etree.SubElement(shape, f"{_P}txBody")
    etree.SubElement(body, f"{_A}bodyPr")
    body.extend(paragraphs)
    return shape
