"""A Word document in the form in which kreuzberg (4.10) reads all of its text.

Of what a reader sees it drops tabs and with them the space between words, text around a text box,
text boxes in tables, choices in fields of old forms, hyphens that do not break and angle brackets;
it numbers notes otherwise than their references. Of what no reader sees it keeps what was moved
away, hidden text, and prompts of fields that nobody has filled in. So the document is rewritten.
Element names: ECMA-376, part 1, 17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lxml import etree

from chunkcache.retrieval.package_parts import main_part, related, rewritten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chunkcache.retrieval.package_parts import PackageParts

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_SPACE = "{http://www.w3.org/XML/1998/namespace}space"
_NOTES = ("footnote", "endnote")
_OFF = ("0", "false", "off")
_BLOCKS = (f"{_W}p", f"{_W}tbl", f"{_W}sdt", f"{_W}customXml")
_IN_WORDS = {f"{_W}tab": " ", f"{_W}ptab": " ", f"{_W}noBreakHyphen": "-"}
# ticks in fonts of signs (Wingdings and Wingdings 2), by the last two digits of their code
_SIGNS = {"A8": "☐", "6F": "☐", "FE": "☒", "FD": "☒", "FC": "✓", "52": "☒", "A3": "☐"}
# stand for angle brackets on the way through the converter; Unicode has no characters there
_BRACKETS = {"<": "\ufdd0", ">": "\ufdd1"}
_LABEL = "\ufdd2"  # opens the label of a note: as `[^1]` the converter takes it for its own
_OPENED = {ord(_LABEL): "[", **{ord(mark): sign for sign, mark in _BRACKETS.items()}}
_CLOSED = {ord(sign): mark for sign, mark in _BRACKETS.items()}


def as_converted(data: bytes) -> bytes:
    """The document in the converter's form; as it is where it is none."""
    return rewritten(data, _rewrite)


def from_converter(text: str) -> str:
    """What the converter made of `as_converted`, with its angle brackets."""
    return text.translate(_OPENED)


def _rewrite(parts: PackageParts) -> None:
    document = main_part(parts)
    root = parts.tree(document)
    if root is None:
        return
    named = dict(related(parts, document).values())
    notes: dict[str, dict[str, Any]] = {}
    for kind in _NOTES:
        tree = parts.tree(named.get(f"{kind}s", ""))
        if tree is not None:
            notes[kind] = {note.get(f"{_W}id", ""): note for note in tree.iter(f"{_W}{kind}")}
            parts.change(named[f"{kind}s"])
    _notes_to_references(root, notes)
    _into_form(root)
    parts.change(document)


def _into_form(root: Any) -> None:
    for away in [*root.iter(f"{_W}moveFrom", f"{_W}del")]:
        marked = away.getparent()
        _remove(marked.getparent() if marked.tag == f"{_W}trPr" else away)
    for run in [*root.iter(f"{_W}r")]:
        if _is_on(run.find(f"{_W}rPr/{_W}vanish")):
            _remove(run)
    for control in root.iter(f"{_W}sdt"):
        if _is_on(control.find(f"{_W}sdtPr/{_W}showingPlcHdr")):
            for prompt in control.iter(f"{_W}t"):
                prompt.text = ""
    for field in [*root.iter(f"{_W}fldChar")]:
        _say_choice(field)
    for fallback in [*root.iter(f"{_MC}Fallback")]:
        if fallback.getparent().find(f"{_MC}Choice") is not None:
            _remove(fallback)
    for box in reversed([*root.iter(f"{_W}txbxContent")]):
        _behind_its_paragraph(box)
    for run in root.iter(f"{_W}r"):
        _in_words(run)
    for text in root.iter(f"{_W}t"):
        text.text = (text.text or "").translate(_CLOSED)


def _is_on(switch: Any) -> bool:
    return switch is not None and switch.get(f"{_W}val") not in _OFF


def _remove(part: Any) -> None:
    """Without what stands behind it: there is no text between elements."""
    if part.getparent() is not None:
        part.getparent().remove(part)


def _text(words: str) -> Any:
    text = etree.Element(f"{_W}t")
    text.set(_SPACE, "preserve")
    text.text = words
    return text


def _in_words(run: Any) -> None:
    for part in list(run):
        words = _IN_WORDS.get(part.tag)
        if part.tag == f"{_W}sym":
            words = _SIGNS.get(part.get(f"{_W}char", "")[-2:].upper())
            words = words if part.get(f"{_W}font", "").startswith("Wingdings") else None
        if words is not None:
            run.replace(part, _text(words))
        elif part.tag == f"{_W}cr":
            part.tag = f"{_W}br"


def _say_choice(field: Any) -> None:
    """What is chosen in a field of an old form is said in its properties alone."""
    ticked, listed = field.find(f"{_W}ffData/{_W}checkBox"), field.find(f"{_W}ffData/{_W}ddList")
    words = ""
    if ticked is not None:
        state = ticked.find(f"{_W}checked")
        words = "☒" if _is_on(ticked.find(f"{_W}default") if state is None else state) else "☐"
    elif listed is not None:
        chosen = [listed.find(f"{_W}{name}") for name in ("result", "default")]
        number = next((one.get(f"{_W}val", "") for one in chosen if one is not None), "0")
        entries = [entry.get(f"{_W}val", "") for entry in listed.findall(f"{_W}listEntry")]
        words = entries[int(number)] if number.isdecimal() and int(number) < len(entries) else ""
    run = field.getparent()
    if words and run is not None and run.tag == f"{_W}r":
        said = run.makeelement(f"{_W}r")
        said.append(_text(words))
        run.addprevious(said)


def _behind_its_paragraph(box: Any) -> None:
    paragraph = next(box.iterancestors(f"{_W}p"), None)
    if paragraph is not None:
        for block in reversed([part for part in box if part.tag in _BLOCKS]):
            paragraph.addnext(block)
    _remove(box)


def _notes_to_references(root: Any, notes: Mapping[str, Mapping[str, Any]]) -> None:
    """Footnotes and endnotes behind the paragraphs that refer to them, numbered together."""
    references = [*root.iter(*(f"{_W}{kind}Reference" for kind in _NOTES))]
    for number, reference in reversed([*enumerate(references, start=1)]):
        kind = reference.tag.removeprefix(_W).removesuffix("Reference")
        note = notes.get(kind, {}).get(reference.get(f"{_W}id", ""))
        paragraph = next(reference.iterancestors(f"{_W}p"), None)
        if note is None or paragraph is None:
            continue
        reference.getparent().replace(reference, _text(f"{_LABEL}^{number}]"))
        blocks = [part for part in note if part.tag in _BLOCKS]
        for block in reversed(blocks):
            paragraph.addnext(block)
        first = next((run for block in blocks for run in block.iter(f"{_W}r")), None)
        if first is not None:
            label = first.makeelement(f"{_W}r")
            label.append(_text(f"{_LABEL}^{number}]: "))
            first.addprevious(label)
