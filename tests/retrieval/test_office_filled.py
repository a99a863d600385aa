"""Office documents: what a reader sees or has filled in is read, and what nobody sees is not."""

from __future__ import annotations

import csv
import datetime
import io
import re
import zipfile
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from docx.oxml import parse_xml
from pptx.util import Inches

from chunkcache.retrieval.loaders import Extracted, load

SPACES = " ".join(
    f'xmlns:{name}="http://schemas.{rest}"'
    for name, rest in {
        "w": "openxmlformats.org/wordprocessingml/2006/main",
        "mc": "openxmlformats.org/markup-compatibility/2006",
        "wps": "microsoft.com/office/word/2010/wordprocessingShape",
        "wp": "openxmlformats.org/drawingml/2006/wordprocessingDrawing",
        "a": "openxmlformats.org/drawingml/2006/main",
    }.items()
)
NOTES = "application/vnd.openxmlformats-officedocument.wordprocessingml"
RELATED = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def read(name: str, data: bytes) -> Extracted:
    return load(name, data, 1 << 24)


def saved(document: Any) -> bytes:
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def paragraph(content: str) -> str:
    return f"<w:p>{content}</w:p>"


def box(*paragraphs: str) -> str:
    """A text box as Word writes one: for programs of today, and once more for those before."""
    inside = f"<w:txbxContent>{''.join(map(paragraph, paragraphs))}</w:txbxContent>"
    shape = f"<wps:wsp><wps:txbx>{inside}</wps:txbx></wps:wsp>"
    drawing = (
        f"<wp:inline><a:graphic><a:graphicData>{shape}</a:graphicData></a:graphic></wp:inline>"
    )
    return (
        f'<w:r><mc:AlternateContent><mc:Choice Requires="wps"><w:drawing>{drawing}</w:drawing>'
        f"</mc:Choice><mc:Fallback><w:pict>{inside}</w:pict></mc:Fallback></mc:AlternateContent></w:r>"
    )


def field(properties: str, instruction: str, result: str = "") -> str:
    return (
        f'<w:r><w:fldChar w:fldCharType="begin"><w:ffData>{properties}</w:ffData></w:fldChar></w:r>'
        f"<w:r><w:instrText> {instruction} </w:instrText></w:r>{result}"
        '<w:r><w:fldChar w:fldCharType="end"/></w:r>'
    )


def a_docx(*blocks: str, notes: dict[str, dict[int, str]] | None = None) -> bytes:
    """A document of these blocks; `notes`: texts by number, of footnotes and endnotes."""
    document = docx.Document()
    for block in blocks:
        root = parse_xml(f"<w:body {SPACES}>{block}</w:body>")
        for part in list(root):
            document.element.body.insert(len(document.element.body) - 1, part)
    data = saved(document)
    if not notes:
        return data
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for item in old.infolist():
            part = old.read(item).decode("utf-8", "surrogateescape")
            for kind in notes:
                part = part.replace(
                    "</Types>", f'<Override PartName="/word/{kind}s.xml" '
                    f'ContentType="{NOTES}.{kind}s+xml"/></Types>',
                )  # fmt: skip
                if item.filename == "word/_rels/document.xml.rels":
                    part = part.replace(
                        "</Relationships>", f'<Relationship Id="{kind}" Type="{RELATED}/{kind}s" '
                        f'Target="{kind}s.xml"/></Relationships>',
                    )  # fmt: skip
            new.writestr(item, part.encode("utf-8", "surrogateescape"))
        for kind, texts in notes.items():
            some = "".join(
                f'<w:{kind} w:id="{number}">{paragraph(f"<w:r><w:{kind}Ref/></w:r>" + run(text))}'
                f"</w:{kind}>"
                for number, text in texts.items()
            )
            apart = f'<w:{kind} w:type="separator" w:id="0">{paragraph("")}</w:{kind}>'
            new.writestr(f"word/{kind}s.xml", f"<w:{kind}s {SPACES}>{apart}{some}</w:{kind}s>")
    return stream.getvalue()


# ---------------------------------------------------------------- docx


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("<w:r><w:t>Name:</w:t><w:tab/><w:t>Ada</w:t></w:r>", "Name: Ada"),
        ("<w:r><w:t>one</w:t><w:cr/><w:t>two</w:t></w:r>", "one two"),
        ("<w:r><w:t>self</w:t><w:noBreakHyphen/><w:t>made</w:t></w:r>", "self-made"),
        (run("use List&lt;int&gt; and &lt;b&gt;, a &lt; b"), "use List<int> and <b>, a < b"),
        ('<w:r><w:sym w:font="Wingdings" w:char="F0FE"/></w:r>' + run(" yes"), "☒ yes"),
        (run("Name: ") + "<w:sdt><w:sdtPr/><w:sdtContent>" + run("Ada") + "</w:sdtContent></w:sdt>",
         "Name: Ada"),
        (run("Name: ") + field("<w:textInput/>", "FORMTEXT",
                               '<w:r><w:fldChar w:fldCharType="separate"/></w:r>' + run("Ada")),
         "Name: Ada"),
        (run("A ") + field("<w:checkBox><w:default w:val='0'/><w:checked/></w:checkBox>",
                           "FORMCHECKBOX") + run(" yes"), "A ☒ yes"),
        (run("A ") + field("<w:checkBox><w:default w:val='1'/><w:checked w:val='0'/></w:checkBox>",
                           "FORMCHECKBOX") + run(" yes"), "A ☐ yes"),
        (run("In: ") + field("<w:ddList><w:result w:val='1'/><w:listEntry w:val='north'/>"
                             "<w:listEntry w:val='south'/></w:ddList>", "FORMDROPDOWN"),
         "In: south"),
        (run("It is ") + f'<w:ins w:id="1" w:author="a">{run("new")}</w:ins>'
         f'<w:del w:id="2" w:author="a"><w:r><w:delText>old</w:delText></w:r></w:del>'
         f'<w:moveFrom w:id="3" w:author="a">{run("gone")}</w:moveFrom>'
         f'<w:moveTo w:id="4" w:author="a">{run(" here")}</w:moveTo>', "It is new here"),
        (run("seen") + "<w:r><w:rPr><w:vanish/></w:rPr><w:t> unseen</w:t></w:r>"
         '<w:r><w:rPr><w:vanish w:val="0"/></w:rPr><w:t> too</w:t></w:r>', "seen too"),
    ],
)  # fmt: skip
def test_a_paragraph_is_read_as_it_is_seen(content: str, says: str) -> None:
    assert read("a.docx", a_docx(paragraph(content))).text == says


def test_the_prompt_of_an_empty_field_is_not_its_value() -> None:
    prompt = f"<w:sdtContent>{run('Click to enter text.')}</w:sdtContent>"
    control = f"<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr>{prompt}</w:sdt>"
    assert read("a.docx", a_docx(paragraph(run("Name:") + control))).text == "Name:"


def test_text_boxes_stand_behind_the_paragraph_that_holds_them() -> None:
    cell = f"<w:tc><w:tcPr/>{paragraph(run('cell') + box(run('boxed too')))}</w:tc>"
    table = f"<w:tbl><w:tblPr/><w:tblGrid><w:gridCol/></w:tblGrid><w:tr>{cell}</w:tr></w:tbl>"
    around = run("before ") + box(run("one"), run("two")) + run("after") + box(run("three"))
    found = read("a.docx", a_docx(paragraph(around), table, paragraph(run("End")))).text
    assert found.split("\n\n") == [
        "before after", "one", "two", "three", "| cell boxed too |\n| --- |", "End",
    ]  # fmt: skip


def test_footnotes_and_endnotes_stand_behind_the_paragraph_that_refers_to_them() -> None:
    """Both are numbered from the same number on."""
    refer = '<w:r><w:{}Reference w:id="2"/></w:r>'
    blocks = [
        paragraph(run("Ends") + refer.format("endnote") + run(" here.")),
        paragraph(run("Feet") + refer.format("footnote")),
        paragraph(run("Last.")),
    ]
    notes = {"footnote": {2: "at its foot"}, "endnote": {2: "at its end"}}
    assert read("a.docx", a_docx(*blocks, notes=notes)).text.split("\n\n") == [
        "Ends[^1] here.", "[^1]: at its end", "Feet[^2]", "[^2]: at its foot", "Last.",
    ]  # fmt: skip


# ---------------------------------------------------------------- xlsx, pptx


def test_hidden_sheets_are_left_out_and_named() -> None:
    book = openpyxl.Workbook()
    book.active.append(["seen"])
    for name, state in (("Rates", "hidden"), ("Deep", "veryHidden")):
        sheet = book.create_sheet(name)
        sheet.append([f"unseen {name}"])
        sheet.sheet_state = state
    book.create_sheet("Last").append(["seen last"])
    found = read("a.xlsx", saved(book))
    assert "unseen" not in found.text
    assert found.text.index("seen") < found.text.index("seen last")
    assert found.problems == ("2 hidden sheets left out: Rates, Deep",)


def test_formulas_whose_value_nobody_stored_are_named() -> None:
    book = openpyxl.Workbook()
    book.active.append(["units", "total"])
    book.active.append([3, "=A2*2"])
    (problem,) = read("a.xlsx", saved(book)).problems
    assert problem.startswith("1 formula without a stored value, and empty: Sheet!B2. Hint")
    with_values = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(book))) as old,
        zipfile.ZipFile(with_values, "w") as new,
    ):
        for item in old.infolist():
            new.writestr(item, re.sub(rb"<v ?/>|<v></v>", b"<v>6</v>", old.read(item)))
    found = read("a.xlsx", with_values.getvalue())
    assert found.problems == () and "| 3 | 6 |" in found.text


def test_days_and_times_are_written_as_people_do() -> None:
    book = openpyxl.Workbook()
    book.active.append(["day", "time", "both"])
    day = datetime.date(2024, 5, 1)
    both = datetime.datetime(2024, 5, 1, 13, 30)
    book.active.append([day, datetime.time(9, 5), both])
    assert "| 2024-05-01 | 09:05:00 | 2024-05-01 13:30:00 |" in read("a.xlsx", saved(book)).text


@pytest.mark.parametrize("suffix", [".xlsx", ".csv"])
def test_a_cell_of_several_lines_does_not_break_its_row(suffix: str) -> None:
    rows = [["name", "says", "n"], ["one\n\ntwo", "a\nb", "1"], ["x", "y", "last\nline"]]
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    lines = io.StringIO()
    csv.writer(lines).writerows(rows)
    data = saved(book) if suffix == ".xlsx" else lines.getvalue().encode()
    table = [line for line in read(f"a{suffix}", data).text.split("\n") if line.startswith("|")]
    assert table[2:] == ["| one two | a b | 1 |", "| x | y | last line |"]


def test_notes_stand_behind_their_slide() -> None:
    show = pptx.Presentation()
    for number in (1, 2):
        slide = show.slides.add_slide(show.slide_layouts[5])
        slide.shapes.title.text = f"Slide {number}"
        shape = slide.shapes.add_textbox(Inches(1), Inches(6), Inches(3), Inches(1))
        shape.text_frame.text = f"below {number}"
        if number == 1:
            slide.notes_slide.notes_text_frame.text = "say hello\nand goodbye"
    found = read("a.pptx", saved(show)).text
    parts = ["Slide 1", "below 1", "say hello", "and goodbye", "Slide 2", "below 2"]
    places = [found.index(part) for part in parts]
    assert places == sorted(places)
