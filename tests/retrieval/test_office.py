"""Office documents, books and tables, made by other programs' libraries."""

from __future__ import annotations

import datetime
import io
import json
import zipfile
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from odf.opendocument import OpenDocumentText
from odf.table import Table, TableCell, TableColumn, TableRow
from odf.text import H, List, ListItem, P
from pptx.util import Inches

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval import office
from chunkcache.retrieval.confined import ReadLimits
from chunkcache.retrieval.documents import DocumentKind
from chunkcache.retrieval.loaders import Extracted, load

ROWS = [("name", "limit"), ("max_pool_size", "100"), ("print", "a|b")]


def read(name: str, data: bytes) -> Extracted:
    return load(name, data, 1 << 24)


def saved(document: Any) -> bytes:
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def a_docx(**properties: str) -> Any:
    document = docx.Document()
    for name, value in properties.items():
        setattr(document.core_properties, name, value)
    document.add_heading("Audit queue", 1)
    document.add_paragraph("Set max_pool_size to 5.")
    document.add_heading("Limits", 2)
    table = document.add_table(rows=3, cols=2)
    for r, row in enumerate(ROWS):
        for c, value in enumerate(row):
            table.cell(r, c).text = value
    document.add_paragraph("first item", style="List Bullet")
    return document


def an_xlsx() -> Any:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Sales"
    for row in (("region", "units", "day"), ("North", 120, datetime.date(2024, 5, 1))):
        sheet.append(row)
    sheet["A20"] = "far below"
    book.create_sheet("Notes")["B2"] = "a note"
    return book


def a_pptx() -> Any:
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text = "Quarter"
    slide.placeholders[1].text_frame.text = "first point"
    slide = show.slides.add_slide(show.slide_layouts[5])
    slide.shapes.title.text = "Figures"
    table = slide.shapes.add_table(2, 2, Inches(1), Inches(2), Inches(4), Inches(1)).table
    for r, row in enumerate(ROWS[:2]):  # a bar within a cell is not told from one between cells
        for c, value in enumerate(row):
            table.cell(r, c).text = value
    return show


def an_odt() -> Any:
    document = OpenDocumentText()
    document.text.addElement(H(outlinelevel=1, text="Print queue"))
    document.text.addElement(P(text="The limit is 7 pages, see max_pool_size."))
    items = List()
    item = ListItem()
    item.addElement(P(text="one thing"))
    items.addElement(item)
    document.text.addElement(items)
    table = Table(name="T")
    table.addElement(TableColumn(numbercolumnsrepeated=2))
    for row in ROWS:
        line = TableRow()
        for value in row:
            cell = TableCell()
            cell.addElement(P(text=value))
            line.addElement(cell)
        table.addElement(line)
    document.text.addElement(table)
    return document


def an_epub() -> bytes:
    """Written by hand: two chapters."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr(
            "META-INF/container.xml",
            '<?xml version="1.0"?><container version="1.0" '
            'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
            'full-path="b.opf" media-type="application/oebps-package+xml"/></rootfiles>'
            "</container>",
        )
        items = "".join(
            f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>'
            for n in (1, 2)
        )
        book.writestr(
            "b.opf",
            '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" '
            'unique-identifier="i"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
            '<dc:identifier id="i">x</dc:identifier><dc:title>Of queues</dc:title>'
            f"<dc:language>en</dc:language></metadata><manifest>{items}</manifest>"
            '<spine><itemref idref="c1"/><itemref idref="c2"/></spine></package>',
        )
        for n in (1, 2):
            book.writestr(
                f"c{n}.xhtml",
                '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head><body>'
                f"<h1>Chapter {n}</h1><p>Text {n} with max_pool_size.</p></body></html>",
            )
    return stream.getvalue()


def an_ipynb() -> bytes:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# A notebook\n", "max_pool_size."]},
        {
            "cell_type": "code", "metadata": {}, "execution_count": 1, "source": "x = 1\nprint(x)",
            "outputs": [{"output_type": "display_data", "metadata": {},
                         "data": {"image/png": "aGVsbG8=" * 1000}}],
        },
    ]  # fmt: skip
    return json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": cells}).encode()


def table_of(text: str) -> list[tuple[str, ...]]:
    """The cells of the rows of the tables in a text, without the lines below headers."""
    rows = [line.strip("| ") for line in text.split("\n") if line.startswith("|")]
    cells = [tuple(c.strip() for c in row.replace("\\|", "\0").split("|")) for row in rows]
    return [tuple(c.replace("\0", "|") for c in row) for row in cells if set(row) != {"---"}]


@pytest.mark.parametrize(
    ("name", "data", "title", "says"),
    [
        ("a.docx", saved(a_docx(title="Queues")), "Queues",
         ["# Audit queue", "max_pool_size to 5", "## Limits", "first item"]),
        ("a.pptx", saved(a_pptx()), "Quarter", ["## Quarter", "first point", "## Figures"]),
        ("a.odt", saved(an_odt()), "Print queue", ["# Print queue", "max_pool_size.", "one thing"]),
    ],
)  # fmt: skip
def test_headings_text_and_tables_are_read(
    name: str, data: bytes, title: str, says: list[str]
) -> None:
    found = read(name, data)
    assert (found.kind, found.title) == (DocumentKind.MARKDOWN, title)
    places = [found.text.index(part) for part in says]
    assert places == sorted(places)
    assert table_of(found.text) == (ROWS[:2] if name == "a.pptx" else ROWS)


def test_every_sheet_is_a_table_without_empty_rows() -> None:
    text = read("a.xlsx", saved(an_xlsx())).text
    assert text.index("Sales") < text.index("North") < text.index("Notes") < text.index("a note")
    assert "120" in text and "2024-05-01" in text and "NaN" not in text
    rows = [row for row in table_of(text) if any(row)]
    assert len(rows) == len(table_of(text)) == 4


def test_a_book_is_its_chapters_in_order() -> None:
    found = read("a.epub", an_epub())
    assert found.title == "Of queues"
    assert found.text.index("# Chapter 1") < found.text.index("Text 1 with max_pool_size.")
    assert found.text.index("Text 1") < found.text.index("# Chapter 2")


def test_a_notebook_is_its_text_and_code_without_pictures() -> None:
    found = read("a.ipynb", an_ipynb())
    assert found.title == "A notebook"
    assert "max_pool_size." in found.text and "x = 1\nprint(x)" in found.text
    assert "aGVsbG8" not in found.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_tables_of_commas(encoding: str) -> None:
    text = 'name,limit\r\nmax_pool_size,100\r\n"Die größte Übung, für Öl","a|b"\r\n'
    text += "Wir müssen täglich größere Mengen schöner Äpfel für die Straße prüfen.,7\r\n" * 3
    found = read("a.csv", text.encode(encoding))
    assert table_of(found.text)[:3] == [
        ("name", "limit"), ("max_pool_size", "100"), ("Die größte Übung, für Öl", "a|b"),
    ]  # fmt: skip
    assert found.title == "a.csv"


def test_titles_that_a_program_left_are_not_taken() -> None:
    assert read("a.docx", saved(a_docx(title="Word Document"))).title == "Audit queue"


@pytest.mark.parametrize("suffix", [s for s in office.OFFICE_SUFFIXES if s not in (".csv",)])
def test_what_is_no_such_file_is_refused(suffix: str) -> None:
    with pytest.raises(InvalidRequest, match=r"broken|no text"):
        read(f"a{suffix}", b"this is something else")


def test_without_the_converter_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest) as caught:
        read("a.docx", b"x")
    assert "pip install 'chunkcache[docs]'" in caught.value.message


def test_a_file_that_unfolds_without_end_is_refused_and_the_next_is_read() -> None:
    """A harmless one: 300 MB of blanks, for an address space of 512."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(a_docx()))) as old,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for item in old.infolist():
            data = old.read(item)
            if item.filename == "word/document.xml":
                data = data.replace(b"Set max", b"Set" + b" x" * (150 << 20) + b"max")
            new.writestr(item, data)
    assert len(stream.getvalue()) < 1 << 20
    limits = ReadLimits(memory_bytes=640 << 20, cpu_s=20, text_bytes=1 << 20)
    with pytest.raises(InvalidRequest, match=r"memory|bytes of text|exceeds limit"):
        load("a.docx", stream.getvalue(), 1 << 24, limits)
    assert "max_pool_size" in load("b.docx", saved(a_docx()), 1 << 24, limits).text


def test_nothing_is_left_in_the_current_folder(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read("a.docx", saved(a_docx()))
    assert list(tmp_path.iterdir()) == []
