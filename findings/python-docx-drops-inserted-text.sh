#!/usr/bin/env bash
# python-docx 1.2.0: `paragraph.text` is the text of the runs and links that lie in a paragraph directly. What Word shows
# there too, but wraps, is left out without a word: text inserted while changes are tracked, the content of a form's
# field (content control), a reference's text (simple field). A content control around whole paragraphs is
# missing from `document.paragraphs` and `iter_inner_content()`. So a contract under revision reads as before it.
# Seen: of "The rent is 900 euros from May" only "The rent is" is there; the wrapped paragraph is not.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "python-docx==1.2.0"
"$work/env/bin/python" - <<'PY'
import io

import docx
from docx.oxml import parse_xml
from docx.oxml.ns import qn

NAMES = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def run(text):
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


made = docx.Document()
paragraph = made.add_paragraph("The rent is ")
tracked = 'w:id="1" w:author="Ada" w:date="2026-01-01T00:00:00Z"'
for wrapped in (
    f"<w:ins {NAMES} {tracked}>{run('900 ')}</w:ins>",
    f"<w:sdt {NAMES}><w:sdtContent>{run('euros ')}</w:sdtContent></w:sdt>",
    f'<w:fldSimple {NAMES} w:instr="REF start">{run("from May")}</w:fldSimple>',
):
    paragraph._p.append(parse_xml(wrapped))
block = f"<w:sdt {NAMES}><w:sdtContent><w:p>{run('Signed in Bonn')}</w:p></w:sdtContent></w:sdt>"
paragraph._p.addnext(parse_xml(block))
file = io.BytesIO()
made.save(file)

document = docx.Document(io.BytesIO(file.getvalue()))
shown = "".join(text.text for text in document.element.body.iter(qn("w:t")))
texts = [paragraph.text for paragraph in document.paragraphs]
inner = [part.text for part in document.iter_inner_content()]
print(f"python-docx {docx.__version__}: in the file {shown!r}, paragraphs {texts}, inner content {inner}")
assert shown == "The rent is 900 euros from MaySigned in Bonn"
assert texts == inner == ["The rent is "], "wrapped text is read now"
PY
