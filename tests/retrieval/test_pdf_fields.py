"""PDF: what people have filled in stands where they filled it in."""

from __future__ import annotations

import io
from typing import Any

import pytest
from reportlab.pdfgen.canvas import Canvas

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.loaders import Extracted, load

PICTURE = "q 100 0 0 100 72 600 cm BI /W 1 /H 1 /CS /G /BPC 8 ID x EI Q"
AT = "120 695 300 713"  # beside a label at 72 700


def read(data: bytes) -> Extracted:
    return load("a.pdf", data, 1 << 20)


@pytest.fixture
def form(pdf: Any) -> Any:
    """`form(fields, *pages)`: pages that all show these fields; annotations that are none too."""

    def make(fields: list[str], *pages: str, **more: Any) -> bytes:
        first = 5 + 2 * len(pages)
        listed = " ".join(f"{first + n} 0 R" for n in range(len(fields)))
        catalog = f"/AcroForm << /Fields [{listed}] >> {more.pop('catalog', '')}"
        return bytes(pdf(*pages, annotations=fields, catalog=catalog, **more))

    return make


def text_field(value: str, rect: str = AT, more: str = "/F 4") -> str:
    """A field of one widget; those of one name would be one field."""
    name = rect.replace(" ", "-")
    return f"<< /Subtype /Widget /FT /Tx /T ({name}) /V {value} /Rect [{rect}] {more} >>"


def filled_form() -> bytes:
    """As a library draws one, with appearances."""
    stream = io.BytesIO()
    canvas = Canvas(stream)
    for x, y, label in [
        (72, 700, "Name:"), (300, 700, "Date:"), (72, 660, "Secret:"), (72, 640, "Internal:"),
        (100, 620, "I agree"), (220, 620, "I smoke"), (72, 590, "Colour"), (150, 590, "red"),
        (230, 590, "blue"), (72, 560, "Country"), (72, 540, "Languages"), (72, 480, "Remarks"),
        (72, 380, "The end."),
    ]:  # fmt: skip
        canvas.drawString(x, y, label)
    fields = canvas.acroForm
    line = {"height": 18, "width": 100}
    fields.textfield(name="date", value="2024-05-01", x=340, y=695, **line)
    fields.textfield(name="name", tooltip="Full name", value="Ada Löve", x=120, y=695, **line)
    fields.textfield(name="s", value="hunter2", fieldFlags="password", x=120, y=655, **line)
    fields.textfield(name="i", value="unseen", annotationFlags="hidden", x=120, y=635, **line)
    fields.checkbox(name="agrees", checked=True, x=72, y=616, size=16)
    fields.checkbox(name="smokes", checked=False, x=200, y=616, size=16)
    for x, value in ((130, "red"), (210, "blue")):
        fields.radio(name="c", value=value, selected=value == "blue", x=x, y=586, size=16)
    countries = [("Germany", "DE"), ("France", "FR")]
    fields.choice(name="country", value="FR", options=countries, x=130, y=555, **line)
    fields.listbox(name="l", value="en", options=["de", "en"], x=130, y=510, width=100, height=40)
    fields.textfield(
        name="r", value="one line\nand one more", fieldFlags="multiline", x=72, y=400,
        width=300, height=70,
    )  # fmt: skip
    canvas.save()
    return stream.getvalue()


def test_a_label_that_ends_in_a_colon_gets_no_second_one() -> None:
    stream = io.BytesIO()
    canvas = Canvas(stream)
    canvas.drawString(72, 700, "A form")
    canvas.acroForm.textfield(name="r", tooltip="Remarks : ", value="none", x=72, y=400, width=90)
    canvas.save()
    assert read(stream.getvalue()).text == "A form\nRemarks: none"


def test_values_stand_beside_their_labels() -> None:
    assert read(filled_form()).text.split("\n") == [
        "Name: Ada Löve Date: 2024-05-01", "Secret:", "Internal:", "[x] I agree [ ] I smoke",
        "Colour [ ] red [x] blue", "Country France", "Languages en", "Remarks", "one line",
        "and one more", "The end.",
    ]  # fmt: skip


def test_values_without_appearances_and_in_other_scripts(form: Any) -> None:
    """As programs leave them that let the viewer draw; the field's value hangs on its parent."""
    value = "<FEFF" + "東京 Ω".encode("utf-16-be").hex() + ">"
    assert read(form([text_field(value)], "Name:")).text == "Name: 東京 Ω"
    parent = "<< /FT /Tx /T (name) /V (Ada) /Kids [8 0 R] >>"
    kid = f"<< /Subtype /Widget /Parent 7 0 R /Rect [{AT}] >>"
    assert read(form([parent, kid], "Name:")).text == "Name: Ada"


def test_pages_taken_out_of_a_form_keep_their_values(pdf: Any) -> None:
    assert read(pdf("Name:", annotations=[text_field("(Ada)")])).text == "Name: Ada"


@pytest.mark.parametrize(
    "more",
    ["/F 2", "/F 36", "/F 4 /Ff 8192", "/F 4 /Ff 12288"],
    ids=["hidden", "no view", "password", "password of several lines"],
)
def test_what_nobody_sees_is_not_read(form: Any, more: str) -> None:
    assert read(form([text_field("(secret)", more=more)], "Name:")).text == "Name:"


@pytest.mark.parametrize("rect", ["120 695 120 695", "120 30 300 48"], ids=["no size", "cropped"])
def test_a_field_that_is_nowhere_on_the_page_is_not_read(form: Any, rect: str) -> None:
    data = form([text_field("(secret)", rect)], "Name:", box="0 60 590 792")
    assert read(data).text == "Name:"


@pytest.mark.parametrize(
    ("rotate", "matrix", "rect"),
    [(0, "1 0 0 1 72 700", AT), (90, "0 1 -1 0 72 72", "59 120 77 300"),
     (180, "-1 0 0 -1 540 72", "300 59 492 77"), (270, "0 -1 1 0 540 700", "535 500 553 652")],
)  # fmt: skip
def test_a_turned_page_has_them_in_their_places(
    form: Any, lines_of_pdf: Any, rotate: int, matrix: str, rect: str
) -> None:
    page = lines_of_pdf(["Name:", "", "Next line"], matrix)
    data = form([text_field("(Ada)", rect)], page, rotate=rotate)
    assert read(data).text.split() == ["Name:", "Ada", "Next", "line"]


def test_values_below_their_labels_make_rows(form: Any, lines_of_pdf: Any) -> None:
    page = lines_of_pdf(["Surname    First name", "", "", "End"])
    fields = [
        text_field("(Augusta)", "130 676 200 690", "/TU (First name)"),
        text_field("(King)", "72 675 120 691"),
        text_field("(top)", "72 750 120 766"),
    ]
    assert read(form(fields, page)).text.split("\n") == [
        "top", "Surname First name", "King First name: Augusta", "End",
    ]  # fmt: skip


def test_columns_keep_their_values_apart(form: Any, lines_of_pdf: Any) -> None:
    left = lines_of_pdf(["Name:", "Town:"])
    right = lines_of_pdf(["Street:", "Phone:"], "1 0 0 1 320 700")
    fields = [
        text_field("(Ada)", "120 697 310 709"),
        text_field("(Rome)", "120 683 310 695"),
        text_field("(Via A)", "380 697 500 709"),
        text_field("(123)", "380 683 500 695"),
    ]
    assert read(form(fields, f"{left} {right}")).text.split("\n") == [
        "Name: Ada", "Town: Rome", "Street: Via A", "Phone: 123",
    ]  # fmt: skip


def test_what_is_drawn_where_something_is_to_be_written_gives_way(form: Any) -> None:
    data = form([text_field("(Ada)", "105 695 300 713")], "Name: ____________")
    assert read(data).text == "Name: Ada"
    assert read(form([text_field("()", AT)], "Name: ____")).text == "Name: ____"


def test_a_value_that_was_printed_into_the_page_too_is_read_once(form: Any) -> None:
    data = form([text_field("(Ada Byron)", "104 695 300 713")], "Name: Ada Byron")
    assert read(data).text == "Name: Ada Byron"


def test_text_typed_onto_a_page_is_read_and_notes_that_fold_up_are_not(pdf: Any) -> None:
    typed = f"<< /Subtype /FreeText /Contents (seen on the page) /DA (/F1 11 Tf) /Rect [{AT}] >>"
    note = "<< /Subtype /Text /Contents (a note) /Rect [72 500 90 518] >>"
    assert read(pdf("Name:", annotations=[typed, note])).text == "Name: seen on the page"


def test_a_form_over_a_scan_is_read_with_the_names_of_its_fields(form: Any) -> None:
    fields = [text_field("(Ada)", more="/TU (Full name)"), text_field("(1815)", "72 500 120 518")]
    found = read(form(fields, PICTURE))
    assert found.text == "Full name: Ada\n1815"
    assert found.problems[0].startswith("page of 1 is a picture without text")


XFA = "/XFA (x) >> /NeedsRendering true"


def test_a_form_in_xfa_is_named(pdf: Any) -> None:
    found = read(pdf("Please wait...", catalog=f"/AcroForm << /Fields [] {XFA}"))
    assert found.text == "Please wait..."
    assert "XFA" in found.problems[0] and "Hint" in found.problems[0]
    with pytest.raises(InvalidRequest, match="XFA"):
        read(pdf("", catalog=f"/AcroForm << /Fields [] {XFA}"))
