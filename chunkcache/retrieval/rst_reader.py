"""reStructuredText → HTML (docutils), which is then read as any HTML is.

docutils knows neither Sphinx's directives nor its roles, and leaves a message with the source where
it met one. Those are read here, so that nothing that such a directive holds is lost. Nothing is
read from outside the text.
"""

from __future__ import annotations

import io
import re
import textwrap
from typing import Any

from docutils import nodes
from docutils.core import publish_doctree, publish_from_doctree

from chunkcache.errors import InvalidRequest

_DIRECTIVE = re.compile(r"\.\.[ \t]+(?:\|[^|\n]+\|[ \t]+)?([\w:.+-]+)::[ \t]*([^\n]*)")
_OPTION = re.compile(r"[ \t]*:[\w -]+:(?:[ \t]|$)")
_ROLE = re.compile(r":?([\w:.+-]*):?`(.*?)`:?[\w:.+-]*", re.DOTALL)
_NAME = re.compile(r"[_.:()]")
_TITLED = re.compile(r"(.+?)\s*<[^<>]*>", re.DOTALL)
_CODE = frozenset(
    {"code", "code-block", "sourcecode", "parsed-literal", "productionlist", "prompt"}
)
_NO_TEXT = frozenset({
    "contents", "currentmodule", "highlight", "include", "index", "literalinclude", "meta", "raw",
    "rst-class", "sectnum", "tabularcolumns", "toctree",
})  # fmt: skip
_PROSE_ROLES = frozenset({"ref", "doc", "term", "numref", "guilabel", "menuselection", "abbr"})
_DEPTH_LIMIT = 12
_SETTINGS = {
    "report_level": 1, "halt_level": 5, "file_insertion_enabled": False, "raw_enabled": False,
    "doctitle_xform": False, "docinfo_xform": False, "sectnum_xform": False, "toc_backlinks": False,
    "syntax_highlight": "none", "smart_quotes": False,
    "_disable_config": True, "input_encoding": "unicode", "output_encoding": "unicode",
    "stylesheet": None, "stylesheet_path": None, "embed_stylesheet": False, "math_output": "LaTeX",
    "initial_header_level": 1,
}  # fmt: skip


def rst_to_html(source: str) -> tuple[str, str]:
    """The text as HTML, and its first title or ''.

    Raises:
        InvalidRequest: docutils cannot take it in.
    """
    try:
        tree = _tree(source, 0)
        title = next((part.astext() for part in tree.findall(nodes.title)), "")
        html = publish_from_doctree(tree, writer="html5", settings_overrides=_settings())
    except Exception as error:  # it fails on odd input in many ways
        raise InvalidRequest(
            f"no reStructuredText: {type(error).__name__}: {error}. Hint: name it .txt",
            param="file",
        ) from error
    return html, title


def _settings() -> dict[str, Any]:
    return {**_SETTINGS, "warning_stream": io.StringIO()}


def _tree(source: str, depth: int) -> Any:
    tree = publish_doctree(source, settings_overrides=_settings())
    for message in list(tree.findall(nodes.system_message)):
        block = "".join(part.astext() for part in message.findall(nodes.literal_block))
        found = _DIRECTIVE.match(block)
        _replace(message, _directive(found, block, depth) if found else [])
    for part in list(tree.findall(nodes.problematic)):
        _replace(part, [_role(part.astext())])
    tree.transform_messages.clear()  # the writer would make a section of them
    for section in list(tree.findall(nodes.section)):
        if "system-messages" in section["classes"]:
            section.parent.remove(section)
    return tree


def _replace(node: Any, parts: list[Any]) -> None:
    if node.parent is not None:
        node.parent.replace(node, parts)


def _directive(found: re.Match[str], source: str, depth: int) -> list[Any]:
    """What a directive that docutils does not know, or not with these options, holds."""
    name, argument = found[1].lower(), found[2].strip()
    if name in _NO_TEXT:
        return []
    lines = source[found.end() :].strip("\n").split("\n")
    while lines and (_OPTION.match(lines[0]) or (argument and _more(lines[0], lines))):
        line = lines.pop(0)
        argument += "" if _OPTION.match(line) else f"\n{line.strip()}"
    content = textwrap.dedent("\n".join(lines)).strip("\n")
    if name in _CODE:
        language = [] if " " in argument else argument.split()
        return [nodes.literal_block(content, content, classes=["code", *language])]
    parts: list[Any] = []
    for line in argument.split("\n") if argument else []:
        if name.startswith(("version", "deprecated")):
            parts.append(nodes.paragraph("", f"{name} {line}"))
        elif _NAME.search(line):
            parts.append(nodes.paragraph("", "", nodes.literal("", line)))
        else:
            parts.append(nodes.paragraph("", line))
    if content and depth < _DEPTH_LIMIT:
        parts += _tree(content, depth + 1).children
    return parts


def _more(line: str, lines: list[str]) -> bool:
    """Whether the argument goes on in this line: it does up to a blank one."""
    return bool(line.strip()) and "" in [other.strip() for other in lines]


def _role(source: str) -> Any:
    found = _ROLE.fullmatch(source)
    if not found:
        return nodes.Text(source)
    titled = _TITLED.fullmatch(found[2])
    words = titled[1] if titled else found[2].lstrip("~!")
    prose = titled or found[1].rpartition(":")[2] in _PROSE_ROLES
    return nodes.Text(words) if prose else nodes.literal("", words)
