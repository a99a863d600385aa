#!/usr/bin/env bash
# pypdfium2 5.15.2 (PDFium): the text of a page is what is drawn on it. What somebody filled into a form's fields is not,
# though every viewer shows it, and `init_forms()` does not change that: a filled-in lease or tax form is read
# as an empty one, with all its questions. `page.flatten()` after `init_forms()` draws the values on the page; they
# then come behind all other text, away from their questions.
# Seen, a form of two fields filled in: the labels alone, also with init_forms; flattened the labels and then both values.
# Fails when that changes. Known: https://github.com/pypdfium2-team/pypdfium2/issues/321
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "pypdfium2==5.15.2" "reportlab==5.1.0"
"$work/env/bin/python" - <<'PY'
import io
from importlib.metadata import version

import pypdfium2
from reportlab.pdfgen.canvas import Canvas

file = io.BytesIO()
canvas = Canvas(file)
for height, label, value in ((700, "Tenant:", "Ada Lovelace"), (660, "Rent in euros:", "900")):
    canvas.drawString(72, height, label)
    canvas.acroForm.textfield(name=label, x=200, y=height - 10, width=200, height=20, value=value)
canvas.save()


def text(*, forms, flat=False):
    document = pypdfium2.PdfDocument(file.getvalue())
    if forms:
        document.init_forms()
    if flat:
        document[0].flatten()
    return document[0].get_textpage().get_text_range().split()


labels, values = ["Tenant:", "Rent", "in", "euros:"], ["Ada", "Lovelace", "900"]
plain, forms, flat = text(forms=False), text(forms=True), text(forms=True, flat=True)
print(f"pypdfium2 {version('pypdfium2')}: {plain}, with init_forms {forms}, flattened {flat}")
assert plain == forms == labels, "what is filled in is read now"
assert flat == labels + values, "flattened values are read in another order now"
PY
