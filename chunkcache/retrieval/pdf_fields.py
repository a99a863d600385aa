"""What people have filled in on a page of a PDF: values of form fields, and text typed onto it.

They are annotations of their own, which PDFium leaves out of a page's text. Each is put where it
stands: between the words of its line, else below the line above it.

    Name:  Surname  First name          Name: Ada
    [Ada]  [King ]  [Augusta ]          Surname First name
    [x] agrees                          King Augusta
                                        [x] agrees

Values are those of the field (`/V`, ISO 32000-2, 12.7), not of how it looks, which programs that
fill forms often leave to the viewer.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pypdfium2 import raw

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HIDDEN = 2 | 32  # annotation flags Hidden and NoView (ISO 32000-2, table 167)
_PASSWORD = 1 << 13  # field flag of text fields (table 231)
_CHECKED = {True: "[x]", False: "[ ]"}
_CHOSEN_KINDS = (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON)
_LISTED_KINDS = (raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX)
_LINE_ENDS = ("\r", "\n")
_PLACEHOLDERS = frozenset("_.…·☐□▢❏❑◯○")  # drawn where something is to be written


class Box(NamedTuple):
    """A rectangle in points, as it stands when the page's text is upright."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def turned(cls, x0: float, y0: float, x1: float, y1: float, *, turn: int) -> Box:
        """The box of two corners of a page whose text is upright when it is turned so far.

        Args:
            turn: 0, 90, 180 or 270, clockwise.
        """
        ends = [
            {0: (x, y), 90: (y, -x), 180: (-x, -y), 270: (-y, x)}[turn]
            for x, y in ((x0, y0), (x1, y1))
        ]
        (left, right), (bottom, top) = (sorted(axis) for axis in zip(*ends, strict=True))
        return cls(left, bottom, right, top)

    @property
    def middle(self) -> tuple[float, float]:
        """Its x and y."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def holds(self, other: Box) -> bool:
        """Whether the other's middle is inside."""
        x, y = other.middle
        return self.left <= x <= self.right and self.bottom <= y <= self.top

    def is_level_with(self, other: Box) -> bool:
        """Whether they stand on one line: the middle of one is at the height of the other."""
        (_, own), (_, its) = self.middle, other.middle
        return self.bottom <= its <= self.top or other.bottom <= own <= other.top


@dataclass(frozen=True, slots=True)
class Character:
    """A character of a page's text; without a box PDFium has made it up (blanks, line ends)."""

    text: str
    box: Box | None


@dataclass(frozen=True, slots=True)
class FilledIn:
    """A value, what its field is said to be (may be empty), and where it stands."""

    text: str
    name: str
    box: Box

    @property
    def is_mark(self) -> bool:
        """Whether it is a box to tick."""
        return self.text in _CHECKED.values()


@contextmanager
def form_of(document: Any) -> Iterator[Any]:
    """The document's form environment, to be opened before its pages and closed before it.

    Also where the document lists no fields: pages taken out of a form keep theirs. PDFium as built
    for pypdfium2 runs no scripts of a form.
    """
    settings = raw.FPDF_FORMFILLINFO(version=2)  # must stay while the environment does
    form = raw.FPDFDOC_InitFormFillEnvironment(document, settings)
    try:
        yield form
    finally:
        if form:
            raw.FPDFDOC_ExitFormFillEnvironment(form)


def filled_in(page: Any, form: Any, turn: int) -> list[FilledIn]:
    """What is filled in on a page, in no order; passwords and what is hidden are left out.

    Args:
        form: see `form_of`.
        turn: see `Box.turned`.
    """
    if not form:
        return []
    raw.FORM_OnAfterLoadPage(page, form)
    try:
        found = [
            _read(page, index, form, turn) for index in range(raw.FPDFPage_GetAnnotCount(page))
        ]
    finally:
        raw.FORM_OnBeforeClosePage(page, form)
    return [one for one in found if one is not None]


def _read(page: Any, index: int, form: Any, turn: int) -> FilledIn | None:
    annotation = raw.FPDFPage_GetAnnot(page, index)
    if not annotation:  # not as annotations are
        return None
    try:
        text, name = _said(annotation, form)
        corners = raw.FS_RECTF()
        raw.FPDFAnnot_GetRect(annotation, corners)
    finally:
        raw.FPDFPage_CloseAnnot(annotation)
    box = Box.turned(corners.left, corners.bottom, corners.right, corners.top, turn=turn)
    has_size = box.left < box.right and box.bottom < box.top
    return FilledIn(text, name, box) if text and has_size else None


def _said(annotation: Any, form: Any) -> tuple[str, str]:
    """Text and name of an annotation; empty where there is nothing to read."""
    kind = raw.FPDFAnnot_GetSubtype(annotation)
    if raw.FPDFAnnot_GetFlags(annotation) & _HIDDEN:
        return "", ""
    if kind == raw.FPDF_ANNOT_FREETEXT:
        return _string(raw.FPDFAnnot_GetStringValue, annotation, b"Contents"), ""
    if kind != raw.FPDF_ANNOT_WIDGET:
        return "", ""
    name = " ".join(_string(raw.FPDFAnnot_GetFormFieldAlternateName, form, annotation).split())
    return _value(annotation, form), name.rstrip(" :")


def _value(annotation: Any, form: Any) -> str:
    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
    if kind in _CHOSEN_KINDS:
        return _CHECKED[bool(raw.FPDFAnnot_IsChecked(form, annotation))]
    if kind in _LISTED_KINDS:
        options = range(raw.FPDFAnnot_GetOptionCount(form, annotation))
        chosen = [
            _string(raw.FPDFAnnot_GetOptionLabel, form, annotation, index)
            for index in options
            if raw.FPDFAnnot_IsOptionSelected(form, annotation, index)
        ]
        return ", ".join(chosen) or _string(raw.FPDFAnnot_GetFormFieldValue, form, annotation)
    is_password = raw.FPDFAnnot_GetFormFieldFlags(form, annotation) & _PASSWORD
    if kind != raw.FPDF_FORMFIELD_TEXTFIELD or is_password:
        return ""  # of buttons and signatures: how they look
    return _string(raw.FPDFAnnot_GetFormFieldValue, form, annotation)


def _string(read: Any, *arguments: Any) -> str:
    """What a function of PDFium writes into a buffer: UTF-16, closed by a zero."""
    size_bytes = read(*arguments, None, 0)
    if size_bytes <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size_bytes)
    read(*arguments, ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR)), size_bytes)
    text = buffer.raw[: size_bytes - 2].decode("utf-16-le", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


@dataclass(slots=True)
class _Line:
    """Characters `start` to `end` of a page, without the line's end."""

    start: int
    end: int
    box: Box

    def under(self, characters: Sequence[Character], box: Box) -> list[int]:
        """Its characters that a box covers."""
        places = range(self.start, self.end)
        return [at for at in places if (own := characters[at].box) is not None and box.holds(own)]

    def gap(self, characters: Sequence[Character], to: Box) -> tuple[bool, float]:
        """How far its nearest word is from a box; whether it has none on the left comes first."""
        boxes = [one.box for one in characters[self.start : self.end] if one.box is not None]
        x, _ = to.middle
        left = [to.left - box.right for box in boxes if box.middle[0] < x]
        right = [box.left - to.right for box in boxes if box.middle[0] >= x]
        return not left, min(left or right)


def with_filled_in(characters: Sequence[Character], filled: Sequence[FilledIn]) -> str:
    """A page's text, and in it what is filled in."""
    lines = list(_lines(characters))
    inside: dict[int, list[FilledIn]] = {}  # by the character that comes next
    below: dict[int, list[FilledIn]] = {}
    dropped: set[int] = set()
    for one in _in_reading_order(filled):
        level = [line for line in lines if line.box.is_level_with(one.box)]
        covered = [at for line in level for at in line.under(characters, one.box)]
        if _same_text("".join(characters[at].text for at in covered), one.text):
            continue  # it was printed into the page, and the field kept
        dropped.update(at for at in covered if characters[at].text in _PLACEHOLDERS)
        if level:
            line = min(level, key=lambda line: _distance(line.gap(characters, one.box), one))
            inside.setdefault(_place(characters, line, one.box), []).append(one)
        elif one.name or not one.is_mark or one.text == _CHECKED[True]:
            below.setdefault(_line_above(lines, one.box), []).append(one)
    text = _rows(below.get(0, []), "", "\n")
    for index in range(len(characters) + 1):
        for one in inside.get(index, []):
            text += f"{'' if not text or text[-1].isspace() else ' '}{one.text} "
        if index and index in below:
            text = _rows(below[index], text.rstrip(" ") + "\n", "")
        following = characters[index].text if index < len(characters) else ""
        text = text.rstrip(" ") if following in _LINE_ENDS else text
        text += following if index not in dropped else ""
    return text


def _same_text(one: str, other: str) -> bool:
    return "".join(one.split()) == "".join(other.split())


def _in_reading_order(filled: Sequence[FilledIn]) -> list[FilledIn]:
    rows: list[list[FilledIn]] = []
    for one in sorted(filled, key=lambda one: -one.box.middle[1]):
        if rows and rows[-1][0].box.is_level_with(one.box):
            rows[-1].append(one)
        else:
            rows.append([one])
    return [one for row in rows for one in sorted(row, key=lambda one: one.box.left)]


def _distance(gap: tuple[bool, float], one: FilledIn) -> tuple[bool, float]:
    """A field's label is on its left if it has any, that of a box to tick where it is nearest."""
    return (False, gap[1]) if one.is_mark else gap


def _lines(characters: Sequence[Character]) -> Iterator[_Line]:
    start = 0
    ends = [index for index, one in enumerate(characters) if one.text in _LINE_ENDS]
    for end in [*ends, len(characters)]:
        boxes = [one.box for one in characters[start:end] if one.box and one.text.strip()]
        if boxes:
            left, bottom, right, top = zip(*boxes, strict=True)
            yield _Line(start, end, Box(min(left), min(bottom), max(right), max(top)))
        start = end + 1


def _place(characters: Sequence[Character], line: _Line, box: Box) -> int:
    """Before the first character on the right."""
    for index in range(line.start, line.end):
        own = characters[index].box
        if own is not None and own.middle[0] > box.left:
            return index
    return line.end


def _line_above(lines: Sequence[_Line], box: Box) -> int:
    """The end of the nearest line above, of those over the box if there are any; 0: there is no."""
    above = [line for line in lines if line.box.middle[1] > box.middle[1]]
    over = [line for line in above if line.box.left < box.right and box.left < line.box.right]
    return min(over or above, key=lambda line: line.box.bottom, default=_Line(0, 0, box)).end


def _rows(filled: Sequence[FilledIn], before: str, after: str) -> str:
    """Values that stand on lines of their own, each with what its field is said to be."""
    text = ""
    for number, one in enumerate(filled):
        if number:
            text += " " if one.box.is_level_with(filled[number - 1].box) else "\n"
        labelled = f"{one.text} {one.name}" if one.is_mark else f"{one.name}: {one.text}"
        text += labelled if one.name else one.text
    return before + text + after if text else before
