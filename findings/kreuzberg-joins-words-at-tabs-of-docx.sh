#!/usr/bin/env bash
# kreuzberg 4.10.4: of a Word document, tabs are dropped without a blank in their place, so that words on both sides become
# one; of a paragraph that holds a text box, the box alone is left; a hyphen that does not break is dropped. `<T>` loses
# its brackets (output as Djot). Text indexed from it is found by none of these words.
# Seen: "Name:<tab>Ada" is "Name:Ada"; "Rent [box: 900 euros] a month" is "900 euros"; "self-made" is "selfmade";
# "list<int>" is "listint". Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "kreuzberg==4.10.4" "python-docx==1.2.0"
"$work/env/bin/python" - <<'PY'
import io
from importlib.metadata import version

import docx
import kreuzberg
from docx.oxml import OxmlElement, parse_xml

NAMES = (
    'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
    'xmlns:v="urn:schemas-microsoft-com:vml"'
)
TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

made = docx.Document()
made.add_paragraph("Name:\tAda")
boxed = made.add_paragraph("Rent ")
boxed._p.append(parse_xml(
    f'<w:r {NAMES}><w:pict><v:rect style="width:99pt;height:30pt"><v:textbox><w:txbxContent>'
    "<w:p><w:r><w:t>900 euros</w:t></w:r></w:p></w:txbxContent></v:textbox></v:rect></w:pict></w:r>"
))
boxed.add_run(" a month")
hyphened = made.add_paragraph().add_run("self")
hyphened._r.append(OxmlElement("w:noBreakHyphen"))
hyphened.add_text("made")
made.add_paragraph("list<int>")
file = io.BytesIO()
made.save(file)

shown = [paragraph.text for paragraph in docx.Document(io.BytesIO(file.getvalue())).paragraphs]
config = kreuzberg.ExtractionConfig(output_format="djot", use_cache=False)
found = kreuzberg.extract_bytes_sync(file.getvalue(), TYPE, config=config).content
read = [part.strip() for part in found.split("\n\n") if part.strip()]
print(f"kreuzberg {version('kreuzberg')}: paragraphs {shown}, read {read}")
assert shown == ["Name:\tAda", "Rent  a month", "self-made", "list<int>"]
assert read == ["Name:Ada", "900 euros", "selfmade", "listint"], "something of it is read now"
PY
