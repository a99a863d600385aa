"""PDF: order, hyphens, scans, titles."""

from __future__ import annotations

import io
import threading
from itertools import product
from typing import Any

import pytest
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.hyphens import MARK, Hyphens
from chunkcache.retrieval.loaders import Extracted, load
from chunkcache.retrieval.titles import own_title

PICTURE = "q 100 0 0 100 72 600 cm BI /W 1 /H 1 /CS /G /BPC 8 ID x EI Q"
TABLE = ["Table 7: sales", "Region Units Revenue", "North 120 4400 EUR", "South 340 9100 EUR"]


def read(data: bytes) -> Extracted:
    return load("a.pdf", data, 1 << 20)


def draw(canvas: Canvas, lines: list[str], *, turned: int = 0, word_by_word: bool = False) -> None:
    """Lines that run as a page's own do when it is turned by so much, counterclockwise."""
    width, height = 612, 792
    canvas.saveState()
    canvas.translate(width * (turned in (90, 180)), height * (turned in (180, 270)))
    canvas.rotate(turned)
    top = (width if turned in (90, 270) else height) - 72
    for number, line in enumerate(lines):
        x = 72.0
        for run in line.split() if word_by_word else [line]:
            canvas.drawString(x, top - 14 * number, run)
            x += stringWidth(f"{run} ", "Helvetica", 12)
    canvas.restoreState()


def next_page(canvas: Canvas, rotate: int) -> None:
    """Begin a page of 612 by 792 points; reportlab takes sizes as they are shown."""
    canvas.showPage()
    canvas.setPageSize((792, 612) if rotate in (90, 270) else (612, 792))
    canvas.setPageRotation(rotate)


def reason(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(data)
    return caught.value.message


def test_text_of_all_pages_and_title(pdf: Any) -> None:
    found = read(pdf("The quick brown fox", "jumps over", title="A tale"))
    assert found.text == "The quick brown fox\n\njumps over"
    assert (found.title, found.problems, found.kind) == ("A tale", (), "plain")
    assert load("b.pdf", pdf("text"), 1 << 20).title == "b.pdf"


def test_an_encrypted_pdf_is_refused(pdf: Any) -> None:
    key = "00" * 32
    lock = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{key}> /U <{key}> /P -4 >> /ID [<00><00>]"
    assert "encrypted" in reason(pdf("secret", trailer=lock))


def test_a_broken_pdf_is_refused() -> None:
    assert "broken PDF" in reason(b"%PDF-1.4\nrubbish")


def test_threads_read_pdfs_at_once(pdf: Any) -> None:
    files = [pdf(*[f"file {n} page {p}" for p in range(3)]) for n in range(4)]
    found: list[str] = [""] * 4

    def work(n: int) -> None:
        found[n] = read(files[n]).text

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["\n\n".join(f"file {n} page {p}" for p in range(3)) for n in range(4)]


# ---------------------------------------------------------------- order


@pytest.mark.parametrize(
    ("rotate", "matrix"),
    [(0, "1 0 0 1 72 700"), (90, "0 1 -1 0 72 72"), (180, "-1 0 0 -1 540 72"),
     (270, "0 -1 1 0 540 700")],
)  # fmt: skip
def test_a_turned_page_is_read_as_it_is_seen(
    rotate: int, matrix: str, pdf: Any, lines_of_pdf: Any
) -> None:
    page = lines_of_pdf(TABLE * 9, matrix.replace("72 700", "72 780"))
    assert read(pdf(page, rotate=rotate)).text == "\n".join(TABLE * 9)


def test_lines_are_read_in_their_order_however_page_and_text_are_turned() -> None:
    """Upright text on a turned page shows turned; text turned as its page is shows upright."""
    file = io.BytesIO()
    canvas = Canvas(file)
    canvas.drawString(72, 700, "cover")
    ways = list(product((0, 90, 180, 270), (0, 90, 180, 270), (False, True)))
    for rotate, turned, word_by_word in ways:
        next_page(canvas, rotate)
        draw(canvas, TABLE, turned=turned, word_by_word=word_by_word)
    canvas.save()
    cover, *pages = read(file.getvalue()).text.split("\n\n")
    assert cover == "cover"
    assert dict(zip(ways, pages, strict=True)) == dict.fromkeys(ways, "\n".join(TABLE))


@pytest.mark.parametrize("rotate", [0, 90])
def test_a_stamp_in_the_margin_does_not_turn_the_page(rotate: int) -> None:
    file = io.BytesIO()
    canvas = Canvas(file)
    canvas.drawString(72, 700, "cover")
    next_page(canvas, rotate)
    draw(canvas, ["arXiv:2405.16444v3 [cs.LG]"], turned=90)
    draw(canvas, TABLE, word_by_word=True)
    canvas.save()
    assert "\n".join(TABLE) in read(file.getvalue()).text


@pytest.mark.parametrize(
    ("rotate", "inside", "outside"),
    [(0, "1 0 0 1 72 700", "1 0 0 1 72 30"), (90, "0 1 -1 0 72 72", "0 1 -1 0 600 72")],
)
def test_what_is_cropped_away_is_not_read(
    rotate: int, inside: str, outside: str, pdf: Any, lines_of_pdf: Any
) -> None:
    page = lines_of_pdf(["seen"], inside) + " " + lines_of_pdf(["cropped"], outside)
    assert read(pdf(page, rotate=rotate, box="0 60 590 792")).text == "seen"


# ---------------------------------------------------------------- hyphens


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["a well-", "known case"], "a well-known case"),
        (["without reser-", "vation at all"], "without reservation at all"),
        (["during COVID-", "19 we met"], "during COVID-19 we met"),
        (["an Anglo-", "American idea"], "an Anglo-American idea"),
        (["a state-of-the-", "art system"], "a state-of-the-art system"),
        (["more infor-", "mation here"], "more information here"),
        (["INFOR-", "MATION for you"], "INFORMATION for you"),
        (["it did over-", "come them"], "it did overcome them"),
        (["the end of a sen-", "1"], "the end of a sen-\n1"),
    ],
)
def test_hyphens_at_line_ends(lines: list[str], text: str, pdf: Any, lines_of_pdf: Any) -> None:
    assert read(pdf(lines_of_pdf(lines))).text == text


def test_hyphens_on_a_turned_page(pdf: Any, lines_of_pdf: Any) -> None:
    page = lines_of_pdf(["a well-", "known reser-", "vation"], "0 1 -1 0 72 72")
    assert read(pdf(page, rotate=90)).text == "a well-known reservation"


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        (f"foo{MARK}bar", "foobar"),
        (f"foo{MARK}bar and foo-bar", "foo-bar and foo-bar"),
        (f"well{MARK}known, all wellknown", "wellknown, all wellknown"),
        (f"Haus{MARK}halt und Haus und halt", "Haushalt und Haus und halt"),
        (f"X{MARK}2 and 3{MARK}D", "X-2 and 3-D"),
        ("the well\u2010\nknown re\u2010\nport", "the well-known report"),
        ("range 3\u2010\n5", "range 3-5"),
        (f"{MARK}lost{MARK}", "-lost-"),
        (f"a{MARK}\nb", "ab"),
        ("no marks - at all-", "no marks - at all-"),
    ],
)
def test_the_document_and_the_dictionary_decide(text: str, resolved: str) -> None:
    english = {"the", "well", "known", "report", "and", "all", "halt"}
    assert Hyphens(text, lambda: english).resolve() == resolved


def test_the_dictionary_is_not_loaded_where_nothing_is_in_doubt() -> None:
    def load_it() -> Any:
        raise AssertionError("loaded")

    assert Hyphens(f"COVID{MARK}19, foo{MARK}bar, foobar", load_it).resolve() == (
        "COVID-19, foobar, foobar"
    )


# ---------------------------------------------------------------- pictures


def test_a_scan_is_refused(pdf: Any) -> None:
    assert "without text" in reason(pdf("", ""))
    assert "without text" in reason(pdf(PICTURE))


def test_pages_without_text_are_counted_and_named(pdf: Any) -> None:
    found = read(pdf("one", PICTURE, "three", "", PICTURE, PICTURE, PICTURE))
    assert found.text == "one\n\nthree"
    (problem,) = found.problems  # the empty page hides nothing
    assert problem.startswith("4 pages of 7 are pictures without text, and left out: 2, 5-7.")
    (problem,) = read(pdf("one", PICTURE)).problems
    assert problem.startswith("page of 2 is a picture without text, and left out: 2.")


def test_a_picture_beside_text_is_no_problem(pdf: Any) -> None:
    assert read(pdf(f"{PICTURE} BT /F1 11 Tf 72 700 Td (seen) Tj ET")).problems == ()


# ---------------------------------------------------------------- titles


@pytest.mark.parametrize(
    "title",
    ["untitled", "Untitled-1", "(anonymous)", "Document1", "Word Document", "Presentation",
     "PowerPoint Presentation", "Slide 1", "Microsoft Word - report.doc",
     "Microsoft Word - Annual report", "Microsoft PowerPoint - x", "/tmp/x3f", "C:\\docs\\x.docx",
     "file:///home/me/x.html", "annual report.doc", "paper_v2.dvi", "README.md", "main.tex", " ",
     "~/draft", "\\\\server\\share\\x"],
)  # fmt: skip
def test_titles_that_programs_leave_are_no_titles(title: str) -> None:
    assert own_title(title) == ""


@pytest.mark.parametrize(
    "title",
    ["A tale", "TCP/IP Illustrated", "Microsoft Excel Bible", "Introduction to Node.js",
     "The Untitled Document", "Word embeddings", "Documenting APIs", "/etc/passwd explained",
     "Either/Or", "Slide rules", "1984", "Page by page"],
)  # fmt: skip
def test_other_titles_are_kept(title: str) -> None:
    assert own_title(f" {title}\n") == title


def test_a_placeholder_gives_way_to_the_file_s_name(pdf: Any) -> None:
    assert load("report.pdf", pdf("text", title="untitled"), 1 << 20).title == "report.pdf"
