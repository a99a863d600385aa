"""A workbook as it is shown: without its hidden sheets, and with word of what has no value.

A formula's value stands beside it when a spreadsheet program has saved the file; other programs
write the formula alone. Element names: ECMA-376, part 1, 18.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from chunkcache.retrieval.package_parts import main_part, related, rewritten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.retrieval.package_parts import PackageParts

_S = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_ID = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_NAMED = 10  # cells or sheets in one problem
# a cell of the converter: a time of day has the day that counting begins with, a day no time
_TIME_OF_DAY = re.compile(r"(?<=\| )1899-12-3[01] (?=\d\d:\d\d:\d\d(?:\.\d+)? \|)")
_DAY = re.compile(r"(?<=\| )(\d{4}-\d\d-\d\d) 00:00:00(?= \|)")


def as_shown(data: bytes) -> tuple[bytes, list[str]]:
    """The workbook without hidden sheets, and what of it is left out."""
    problems: list[str] = []

    def rewrite(parts: PackageParts) -> None:
        hidden = _without_hidden_sheets(parts)
        if hidden:
            problems.append(_counted(hidden, "hidden sheet", "left out"))
        unknown = _without_values(parts)
        if unknown:
            problems.append(
                _counted(unknown, "formula", "without a stored value, and empty")
                + ". Hint: save it once with a spreadsheet program"
            )

    return rewritten(data, rewrite), problems


def as_written(text: str) -> str:
    """The converter's tables with days and times of day as people write them."""
    return _DAY.sub(r"\1", _TIME_OF_DAY.sub("", text))


def _without_hidden_sheets(parts: PackageParts) -> list[str]:
    """Takes them out of the workbook. Their names."""
    name = main_part(parts)
    book = parts.tree(name)
    if book is None:
        return []
    sheets = [*book.iter(f"{_S}sheet")]
    hidden = [one for one in sheets if one.get("state") in ("hidden", "veryHidden")]
    if not hidden or len(hidden) == len(sheets):
        return []
    for one in hidden:
        one.getparent().remove(one)
    parts.change(name)
    return [one.get("name", "") for one in hidden]


def _without_values(parts: PackageParts) -> list[str]:
    """Cells of shown sheets with a formula and no value, as `Sheet!D2`."""
    name = main_part(parts)
    book, targets = parts.tree(name), related(parts, name)
    found = []
    for one in book.iter(f"{_S}sheet") if book is not None else ():
        _, sheet = targets.get(one.get(_ID, ""), ("", ""))
        cells = parts.elements(sheet, f"{_S}c")
        found += [f"{one.get('name', '')}!{c.get('r', '')}" for c in cells if _is_unknown(c)]
    return found


def _is_unknown(cell: Any) -> bool:
    value = cell.find(f"{_S}v")
    return cell.find(f"{_S}f") is not None and (value is None or not value.text)


def _counted(names: Sequence[str], noun: str, what: str) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    many = f"{noun}s" if len(names) > 1 else noun
    return f"{len(names)} {many} {what}: {', '.join(names[:_NAMED])}{more}"
