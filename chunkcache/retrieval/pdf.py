"""PDF → text. Runs in `binary_reader`'s process; PDFium is used by one thread there.

Pages of a scan have no text. They are named, so that nobody takes the rest for the whole. What is
filled into a form stands where it was filled in, see `pdf_fields`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pypdfium2
from pypdfium2 import raw

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.hyphens import Hyphens, english_words
from chunkcache.retrieval.pdf_fields import Box, Character, filled_in, form_of, with_filled_in
from chunkcache.retrieval.titles import own_title

if TYPE_CHECKING:
    from collections.abc import Sequence

_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD
_QUARTER_TURN = math.pi / 2
_CHARS_LOOKED_AT = 200  # of a page, evenly spaced: which way most of them stand
_XFA = (
    "its form is XFA, whose fields and values stand apart from the pages: what is only there is "
    "not read. Hint: print it to a PDF from a program that shows it"
)
_CONTROLS = re.compile(r"[\x00\x01\x03-\x08\x0b-\x1f\x7f\uffff]")  # all but PDFium's hyphen mark


def read_pdf(data: bytes) -> dict[str, Any]:
    """Text of all pages, a blank line between them.

    Raises:
        InvalidRequest: encrypted, broken, or without any text.
    """
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD_ERROR:
            raise _refused("an encrypted PDF. Hint: remove the password") from error
        raise _refused(f"a broken PDF: {error}") from error
    try:
        with form_of(document) as form:
            pages, pictures = _read_pages(document, form)
        title = document.get_metadata_dict().get("Title", "")
        in_xfa = document.get_formtype() == raw.FORMTYPE_XFA_FULL
    except pypdfium2.PdfiumError as error:
        raise _refused(f"a broken PDF: {error}") from error
    finally:
        document.close()
    text = Hyphens("\n\n".join(page for page in pages if page), english_words).resolve()
    if not text:
        without = "a PDF without text. Hint: run text recognition over a scan first"
        raise _refused(_XFA if in_xfa else without)
    problems = [_XFA] if in_xfa else []
    if pictures:
        problems.append(_without_text(pictures, len(pages)))
    return {"text": text, "kind": "plain", "title": own_title(title), "problems": problems}


def _read_pages(document: Any, form: Any) -> tuple[list[str], list[int]]:
    """Texts of the pages, and the numbers of those that are pictures without text."""
    texts, pictures = [], []
    for number in range(len(document)):
        page = document[number]
        drawn, text = _page_text(page, form)
        if not drawn and _has_picture(page):
            pictures.append(number + 1)
        texts.append(text)
        page.close()
    return texts, pictures


def _page_text(page: Any, form: Any) -> tuple[str, str]:
    """Text of a page as it is drawn, and the same with what is filled in."""
    text_page = page.get_textpage()
    try:
        turn = _turn(text_page)
        if turn != page.get_rotation():
            # PDFium orders lines as they are shown: on a page that shows its text turned by 90
            # degrees it begins with the last one, and by 180 with the last word of each. Nothing
            # is shown here, so the page is turned as its text is.
            page.set_rotation(turn)
            text_page.close()
            text_page = page.get_textpage()
        seen = Box.turned(*page.get_cropbox(), turn=turn)
        filled = [one for one in filled_in(page, form, turn) if seen.holds(one.box)]
        if filled or turn in (90, 270):
            characters = _characters(text_page, seen, turn)
            drawn = "".join(one.text for one in characters)
        else:
            characters, drawn = [], text_page.get_text_bounded()
    finally:
        text_page.close()
    return _cleaned(drawn), _cleaned(with_filled_in(characters, filled) if filled else drawn)


def _cleaned(text: str) -> str:
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    lines = valid.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffe", "\x02")
    return _CONTROLS.sub("", lines).strip()


def _turn(text_page: Any) -> int:
    """The rotation of a page that would show most of its text upright: 0, 90, 180 or 270."""
    total = text_page.count_chars()
    turns = Counter(
        -round(raw.FPDFText_GetCharAngle(text_page, index) / _QUARTER_TURN) * 90 % 360
        for index in range(0, total, 1 + total // _CHARS_LOOKED_AT)
        if not raw.FPDFText_IsGenerated(text_page, index)
    )
    return turns.most_common(1)[0][0] if turns else 0


def _characters(text_page: Any, seen: Box, turn: int) -> list[Character]:
    """The characters whose middle is inside the box, in reading order.

    `get_text_bounded` gives their text faster, but on pages turned by 90 and 270 degrees it loses
    the ends of lines, and with them the spaces between words (pypdfium2 5.15.2).
    """
    kept = []
    for index in range(text_page.count_chars()):
        box = None
        if not raw.FPDFText_IsGenerated(text_page, index):
            box = Box.turned(*text_page.get_charbox(index), turn=turn)
            if not seen.holds(box):
                continue
        hyphen = raw.FPDFText_IsHyphen(text_page, index) == 1
        code = raw.FPDFText_GetUnicode(text_page, index)
        kept.append(Character("\x02" if hyphen else chr(code), box))
    return kept


def _has_picture(page: Any) -> bool:
    return any(True for _ in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]))


def _without_text(numbers: Sequence[int], total: int) -> str:
    """`pages 2, 5-7 of 9 are pictures without text`: counted and named."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    named = ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)
    noun = "page" if len(numbers) == 1 else f"{len(numbers)} pages"
    are = "is a picture" if len(numbers) == 1 else "are pictures"
    return (
        f"{noun} of {total} {are} without text, and left out: {named}. "
        "Hint: run text recognition over the file first"
    )


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(reason, param="file")
