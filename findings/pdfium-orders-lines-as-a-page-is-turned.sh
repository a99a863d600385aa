#!/usr/bin/env bash
# pypdfium2 5.15.2 (PDFium): text of a page comes in the order in which the page shows it, although the
# characters' own boxes and angles are those of the unturned page. A page with /Rotate 90 whose text
# is upright in its own coordinates is read last line first; with /Rotate 180 and words drawn one by
# one each line is read last word first. `page.set_rotation(0)` before `get_textpage()`, that is,
# turning the page as its text is, reads both right.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "pypdfium2==5.15.2" "reportlab==5.1.0"
"$work/env/bin/python" - <<'PY'
import io

import pypdfium2
from reportlab.pdfgen.canvas import Canvas


def page_of(rotate, runs):
    file = io.BytesIO()
    # reportlab takes the size as it is shown: this is a page of 612 by 792 points, turned
    canvas = Canvas(file, pagesize=(792, 612) if rotate == 90 else (612, 792))
    canvas.setPageRotation(rotate)
    for x, y, run in runs:
        canvas.drawString(x, y, run)
    canvas.save()
    return pypdfium2.PdfDocument(file.getvalue())[0]


def text_of(page):
    return page.get_textpage().get_text_range().split()


lines = [(72, 700, "first"), (72, 686, "second"), (72, 672, "third")]
words = [(72, 700, "one"), (100, 700, "two"), (128, 700, "three")]
turned, upside_down = page_of(90, lines), page_of(180, words)
found = text_of(turned), text_of(upside_down)
turned.set_rotation(0)
upside_down.set_rotation(0)
print(f"as they are: {found}; rotation cleared: {text_of(turned)}, {text_of(upside_down)}")
assert found == (["third", "second", "first"], ["three", "two", "one"])
assert text_of(turned) == ["first", "second", "third"]
assert text_of(upside_down) == ["one", "two", "three"]
PY
