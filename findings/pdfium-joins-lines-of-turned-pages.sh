#!/usr/bin/env bash
# pypdfium2 5.15.2 (PDFium): the text of a page that is turned (/Rotate 90 or 270) comes without its line
# ends, so the last word of a line and the first of the next become one word. The very same page unturned has them.
# Turned pages are common: wide tables, scanned reports, slides.
# Seen: at 0 and 180 degrees two lines, at 90 and 270 one.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "pypdfium2==5.15.2"
"$work/env/bin/python" - <<'PY'
from importlib.metadata import version

import pypdfium2


def page(degrees):
    """One page with two lines of text, turned."""
    drawn = b"BT /F1 12 Tf 72 700 Td (first line) Tj 0 -20 Td (second line) Tj ET"
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Rotate %d/Contents 4 0 R"
        b"/Resources<</Font<</F1 5 0 R>>>>>>" % degrees,
        b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(data))
        data += b"%d 0 obj%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + (
        b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
        % (table, len(data))
    )


found = {
    degrees: pypdfium2.PdfDocument(page(degrees))[0].get_textpage().get_text_bounded()
    for degrees in (0, 90, 180, 270)
}
print(f"pypdfium2 {version('pypdfium2')}: {found}")
lines = {degrees: text.split() for degrees, text in found.items()}
for degrees in (0, 180):
    assert sorted(lines[degrees]) == ["first", "line", "line", "second"], "unturned text changed"
    assert "\n" in found[degrees]
for degrees in (90, 270):
    assert "\n" not in found[degrees], "turned pages have line ends now"
PY
