"""HTML of documentation → Markdown: all that a reader of the page's main part sees, in its order.

markdownify writes the Markdown. Before it, the tree is brought into the form that it keeps whole:
what is not the page's text is taken out, code blocks become one `<pre><code>` each, containers it
does not know become `<div>`, tables that only arrange blocks are taken apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lxml.html
from bs4 import BeautifulSoup
from lxml import etree
from markdownify import ATX, MarkdownConverter

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.html_fields import fields_into_words
from chunkcache.retrieval.markdown import first_heading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*[\"']?\s*([\w:.-]+)", re.I)
_CHARSET_WITHIN_BYTES = 4096

_NEVER_TEXT = frozenset({
    "script", "style", "noscript", "template", "svg", "iframe", "object", "embed", "canvas",
    "audio", "video", "map", "button", "progress", "meter",
    "nav", "dialog", "head",
})  # fmt: skip
_FURNITURE_ROLES = frozenset(
    ["navigation", "search", "contentinfo", "dialog", "alertdialog", "menu", "menubar", "toolbar"]
)
_FURNITURE = re.compile(
    r"(?:^|[-_\s])(?:nav|navbar|navigation|breadcrumbs?|sidebar(?!-title)|sphinxsidebar|toc|"
    r"pagination|pager|consent|gdpr|skip-?(?:to|link|nav)|"
    r"sr-only|visually-?hidden|screen-reader-text|viewcode-link|viewcode-back|katex-html|"
    r"linenos|linenodiv|lineno|line-numbers-rows|gutter|hljs-ln-numbers)(?=$|[-_\s])",
    re.IGNORECASE,
)
_COOKIES = re.compile(
    r"onetrust|cookiebot|cookie[-_]?(?:ban|bar|box|con|law|mod|not|overlay|pop)", re.IGNORECASE
)
_PERMALINK = re.compile(
    r"(?:^|[\s_-])(?:headerlink|hash-?link|header-?anchor|anchor(?:-?js)?-link|permalink)"
    r"(?=$|[\s_-])",
    re.IGNORECASE,
)
_PERMALINK_SIGNS = frozenset(["", "¶", "#", "§", "🔗", "link", "permalink"])
_CONTAINERS = frozenset({
    "main", "article", "section", "aside", "header", "footer", "hgroup", "figure", "figcaption",
    "details", "summary", "address", "fieldset", "legend", "form", "center", "dl", "dd",
    "search", "picture",
})  # fmt: skip
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = frozenset(
    ["div", "p", "ul", "ol", "pre", "table", "blockquote", *_HEADINGS, *_CONTAINERS]
)
_UNFOLDED_TABLES = " | ".join(f".//{tag}" for tag in ("pre", "table", *_HEADINGS))
_LANGUAGE = re.compile(
    r"(?:^|\s)(?:language|lang|highlight-source|highlight|brush:?)[-\s]([\w+#.-]+)"
)
_LANGUAGE_NAME = re.compile(r"([\w+#.-]+)")
_NO_LANGUAGE = frozenset(["default", "none", "text", "txt", "plaintext", "plain", "notranslate"])
_COLSPAN_LIMIT = 32
_ROWSPAN_LIMIT = 200
_REPEATED_CELL_CHARS = 200


@dataclass(frozen=True, slots=True)
class Page:
    """What an HTML document holds. `title` and `url` are empty when it has none."""

    text: str
    title: str
    url: str


def declared_charset(data: bytes) -> str:
    """The encoding that a document names in its first bytes, or ''."""
    found = _CHARSET.search(data[:_CHARSET_WITHIN_BYTES])
    name = found[1].decode("ascii", "ignore").lower() if found else ""
    if name.startswith(("utf-16", "utf-32")):  # it could not have been read then
        return ""
    return "cp1252" if name in ("iso-8859-1", "latin1", "latin-1", "ascii", "us-ascii") else name


def read_html(source: str) -> Page:
    """The main part of a page as Markdown, its title, and its canonical address.

    Raises:
        InvalidRequest: it is no HTML document.
    """
    tree = _parsed(source)
    title = str(tree.xpath("string(//title)"))
    canonical = str(tree.xpath("string(//link[@rel='canonical']/@href)"))
    url = canonical if canonical.startswith(("http://", "https://")) else ""
    root = _main_part(tree)
    _take_out_furniture(root)
    fields_into_words(root)
    root = _article_of(root)
    _bring_into_form(root)
    text = _markdown(root)
    return Page(text, title if title.strip() else first_heading(text), url)


def _parsed(source: str) -> Any:
    parser = lxml.html.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True
    )
    try:
        tree = lxml.html.document_fromstring(source.encode(), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise InvalidRequest("not an HTML document", param="file") from error
    if any("xcessive depth" in entry.message for entry in parser.error_log):
        # what is deeper than it goes, libxml2 leaves out without a word
        raise InvalidRequest("HTML nested deeper than is read", param="file")
    return tree


def _main_part(tree: Any) -> Any:
    """`<main>` where there is one, else the body."""
    mains = [part for part in tree.xpath("//main | //*[@role='main']") if _words(part)]
    bodies = tree.xpath("//body")
    return mains[0] if mains else bodies[0] if bodies else tree


def _article_of(root: Any) -> Any:
    """The one article that is the page's text, when all that is beside it has no heading."""
    articles = root.xpath(".//article[not(ancestor::article)]")
    if len(articles) == 1:
        headings = " or ".join(f"self::{tag}" for tag in _HEADINGS)
        beside = root.xpath(f".//*[{headings}][not(ancestor::article)]")
        if not beside and 2 * len(_words(articles[0])) > len(_words(root)):
            return articles[0]
    return root


def _words(part: Any) -> str:
    return "".join(part.text_content().split())


def _take_out_furniture(root: Any) -> None:
    """Drop what is no text of the page: navigation, banners, controls, hidden parts."""
    _drop(list(root.iter(*_NEVER_TEXT)))
    _drop(root.xpath(".//*[@role]"), only=lambda part: part.get("role") in _FURNITURE_ROLES)
    _drop(root.xpath(".//a"), only=_is_permalink)
    _drop(root.xpath(".//*[@class or @id]"), only=_is_furniture)
    _drop(root.xpath(".//*[@hidden or contains(@style, 'display')]"), only=_is_hidden)
    _drop(
        root.xpath(".//footer[not(ancestor::blockquote)]"), only=lambda part: not _holds_text(part)
    )
    if root.tag == "body":
        _drop(root.xpath("./header | ./div/header"), only=lambda part: not _holds_text(part))


def _drop(parts: Iterable[Any], only: Callable[[Any], bool] | None = None) -> None:
    for part in parts:
        if part.getparent() is not None and (only is None or only(part)):
            part.drop_tree()


def _holds_text(part: Any) -> bool:
    """Whether it is more than furniture, whatever it is called."""
    return bool(part.xpath("descendant-or-self::main | descendant-or-self::h1"))


def _is_furniture(part: Any) -> bool:
    names = part.get("class", "")
    identity = "" if part.tag in ("section", *_HEADINGS) else part.get("id", "")
    if not _FURNITURE.search(names) and not _COOKIES.search(f"{names} {identity}"):
        return False
    heading = next(part.iterancestors(*_HEADINGS), None)
    if heading is not None and _words(heading) == _words(part):
        return False  # a link back to the table of contents, which is the heading's words
    aside = part.xpath("./p[contains(@class, 'sidebar-title')]")  # a box beside the text (docutils)
    return part.tag not in ("pre", "code", "table") and not aside and not _holds_text(part)


def _is_permalink(link: Any) -> bool:
    words = _words(link).lower()
    if _PERMALINK.search(link.get("class", "")):
        return link.getparent().tag not in ("pre", "code") or words in _PERMALINK_SIGNS
    return words in _PERMALINK_SIGNS and link.get("href", "").startswith("#")


def _is_hidden(part: Any) -> bool:
    """Hidden for good, and not only until its tab is chosen."""
    style = "".join(part.get("style", "").lower().split())
    hidden = part.get("hidden") is not None or "display:none" in style
    tab = part.get("role") == "tabpanel" or "tab" in part.get("class", "").lower()
    return hidden and not tab and not _holds_text(part)


def _bring_into_form(root: Any) -> None:
    for part in root.xpath(".//*[@role='heading']"):
        tag = f"h{part.get('aria-level', '2')}"
        part.tag = tag if tag in _HEADINGS else part.tag
    for literal in root.xpath(".//tt | .//span[contains(@class, 'literal')]"):
        literal.tag = "code"
    for math in root.xpath(".//math[.//annotation]"):
        for plain in math.xpath(".//semantics/*[not(self::annotation)]"):
            plain.drop_tree()
    for code in list(root.iter("pre", "listing", "xmp")):
        if not any(above.tag == "pre" for above in code.iterancestors()):
            _one_code_block(code)
    for picture in list(root.iter("img")):
        _into_words(picture)
    for table in reversed(list(root.iter("table"))):
        _table_into_form(table)
    for part in root.iter():
        if not isinstance(part.tag, str):
            continue
        if part.tag == "dt":
            part.tag = "div" if any(child.tag in _BLOCKS for child in part) else "p"
        elif part.tag in _CONTAINERS or "-" in part.tag:
            part.tag = "div"


def _one_code_block(code: Any) -> None:
    """A code block of whatever markup as `<pre><code class="language-…">` with its text."""
    language = _language(code)
    text = _code_text(code).strip("\n")
    tail = code.tail
    code.clear()
    code.tag, code.tail = "pre", tail
    inner = etree.SubElement(code, "code")
    inner.text = text
    if language:
        inner.set("class", f"language-{language}")


def _code_text(code: Any) -> str:
    """Text of a code block; `<br>` and the end of a block inside it end a line."""
    text = ""
    for event, part in etree.iterwalk(code, events=("start", "end")):
        if event == "start":
            text += "\n" if part.tag == "br" else part.text or ""
            continue
        if part.tag in ("div", "p", "li", "tr") and not text.endswith("\n"):
            text += "\n"
        text += (part.tail or "") if part is not code else ""
    return text


def _language(code: Any) -> str:
    near = [code, *code.xpath("./code")[:1], *list(code.iterancestors())[:3]]
    for part in near:
        named = part.get("data-language") or part.get("data-lang") or ""
        names = part.get("class", "").split()
        if names[:1] == ["code"] and names[1:2] != ["literal-block"]:  # docutils
            named = named or " ".join(names[1:2])
        found = _LANGUAGE_NAME.fullmatch(named) or _LANGUAGE.search(part.get("class", ""))
        name = found[1].lower() if found else ""
        if name and name not in _NO_LANGUAGE:
            return str(name)
    return ""


def _into_words(picture: Any) -> None:
    """What a picture shows, where its author says so; in a heading, the heading's words do."""
    words = " ".join(picture.get("alt", "").split())
    heading = next((part for part in picture.iterancestors(*_HEADINGS)), None)
    if (heading is not None and _words(heading)) or words == picture.get("src"):
        words = ""
    picture.tail = f"{words} {picture.tail or ''}" if words else picture.tail
    picture.drop_tree()


def _table_into_form(table: Any) -> None:
    """A table of data with all cells in every row; any other as its cells' blocks."""
    rows = table.xpath("./tr | ./thead/tr | ./tbody/tr | ./tfoot/tr")
    cells = [list(row.iterchildren("td", "th")) for row in rows]
    arranges = table.get("role") == "presentation" or max(map(len, cells), default=0) < 2
    if arranges or table.xpath(_UNFOLDED_TABLES):
        for part in [table, *table.xpath("./*"), *rows, *(cell for row in cells for cell in row)]:
            part.tag = "div"
        return
    _fill_down(rows)


def _fill_down(rows: list[Any]) -> None:
    """Repeat a cell that spans rows in each of them: Markdown has no other way to say so."""
    open_cells: dict[int, tuple[int, Any]] = {}  # column: rows still to fill, the cell
    for row in rows:
        column, place = 0, 0
        cells = list(row.iterchildren("td", "th"))
        while place < len(cells) or column in open_cells:
            if column in open_cells:
                left, cell = open_cells.pop(column)
                copy = etree.Element(cell.tag)
                copy.text = " ".join(cell.text_content().split())[:_REPEATED_CELL_CHARS]
                if place < len(cells):
                    cells[place].addprevious(copy)
                else:
                    row.append(copy)
                if left > 1:
                    open_cells[column] = (left - 1, cell)
                column += 1
                continue
            cell = cells[place]
            width = min(_span(cell, "colspan"), _COLSPAN_LIMIT)
            cell.set("colspan", str(width))
            if _span(cell, "rowspan") > 1:
                open_cells[column] = (min(_span(cell, "rowspan"), _ROWSPAN_LIMIT) - 1, cell)
            column, place = column + width, place + 1


def _span(cell: Any, name: str) -> int:
    value = cell.get(name, "1")
    return max(1, int(value)) if value.isascii() and value.isdigit() and len(value) < 5 else 1


class _Converter(MarkdownConverter):
    """markdownify, with fences that no code inside them can close."""

    def convert_pre(self, el: Any, text: str, parent_tags: Any) -> str:
        code = el.get_text()
        if not code.strip():
            return ""
        longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
        fence = "`" * (longest + 1)
        names = (el.code.get("class") or [""]) if el.code else [""]
        return f"\n\n{fence}{names[0].removeprefix('language-')}\n{code}\n{fence}\n\n"


def _markdown(root: Any) -> str:
    soup = BeautifulSoup(etree.tostring(root, encoding="unicode", method="html"), "html.parser")
    converter = _Converter(
        heading_style=ATX, bullets="-", strip=["a"], autolinks=False,
        escape_asterisks=False, escape_underscores=False, escape_misc=False,
    )  # fmt: skip
    try:
        text = converter.convert_soup(soup)
    except RecursionError:  # deeper than any page that a person wrote: its words, without form
        text = "\n".join(root.itertext())
    return str(text).strip()
