"""HTML of documentation: what a reader of the page sees is in the text, and nothing else is."""

from __future__ import annotations

import re

import pytest

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.documents import DocumentKind
from chunkcache.retrieval.html_reader import read_html
from chunkcache.retrieval.loaders import Extracted, load

LIMIT = 1 << 20
LONG = "<p>" + "A paragraph that is long enough for what looks at lengths. " * 8 + "</p>"


def read(page: str | bytes) -> Extracted:
    return load("a.html", page.encode() if isinstance(page, str) else page, LIMIT)


def text_of(body: str) -> str:
    return read(f"<html><head><title>T</title></head><body>{body}</body></html>").text


def fences(text: str) -> list[tuple[str, str]]:
    """Language and code of each fence that begins a line."""
    return re.findall(r"^```(\S*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


PAGE = """<!doctype html><html><head><title>Path  functions</title>
<link rel="canonical" href="https://example.org/path"><script>var secret = 1;</script></head>
<body><nav><a href="/">Home</a> <a href="/all">All pages</a></nav><article><h1>Paths</h1>
<p>Use <code>os.path.join</code> to join one or more path segments intelligently, always.</p>
<h2>Lists</h2><ul><li>first of all</li><li>and then the second</li></ul>
<p>The last paragraph of the article has some more words to say about joining.</p></article>
<footer>Copyright nobody</footer></body></html>"""


def test_html_becomes_markdown_of_its_main_content() -> None:
    found = read(PAGE)
    assert found.kind is DocumentKind.MARKDOWN
    assert (found.title, found.url) == ("Path functions", "https://example.org/path")
    assert found.text.startswith("# Paths") and "`os.path.join`" in found.text
    assert "- first of all\n- and then the second" in found.text
    assert "secret" not in found.text and "All pages" not in found.text
    assert "Copyright" not in found.text


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("iso-8859-1", "iso-8859-1"), ("cp1252", "ISO-8859-1"), ("utf-8", "utf-8"), ("utf-8", ""),
        ("utf-8", "utf-16"), ("utf-8", "no-such"), ("cp1252", "utf-8"),
    ],
)  # fmt: skip
def test_html_says_its_own_encoding_and_may_be_wrong(encoding: str, declared: str) -> None:
    mark = f'<meta charset="{declared}">' if declared else ""
    page = PAGE.replace("<head>", f"<head>{mark}").replace("Paths", "Über große Pfade für Gäste")
    assert "# Über große Pfade für Gäste" in read(page.encode(encoding)).text


def test_a_declaration_of_xml_does_no_harm() -> None:
    page = f'<?xml version="1.0" encoding="utf-8"?>{PAGE}'.replace("Paths", "Ünï")
    assert "# Ünï" in read(page).text


@pytest.mark.parametrize("page", ["<html><body></body></html>", "<html><script>x</script></html>"])
def test_pages_without_text_are_refused(page: str) -> None:
    with pytest.raises(InvalidRequest, match="there is no text"):
        read(page)


def test_a_link_that_is_no_web_address_is_not_a_url() -> None:
    assert read(PAGE.replace("https://example.org/path", "javascript:x()")).url == ""


# ---------------------------------------------------------------- what must not be lost


def test_identifiers_stand_as_they_are() -> None:
    words = [
        "max_pool_size",
        "__init__",
        "5 < 6",
        "2*3",
        "[1]",
        "std::vector<int>",
        "a|b",
        "#1",
        "1.",
    ]
    escaped = [word.replace("<", "&lt;") for word in words]
    text = text_of("".join(f"<p>So {word} is.</p>" for word in escaped))
    assert [word for word in words if f"So {word} is." not in text] == []
    cells = text_of(
        "<table><tr><th>k</th><th>v</th></tr><tr><td>max_pool_size</td><td>2*3</td></tr></table>"
    )
    assert "| max_pool_size | 2*3 |" in cells


def test_every_heading_is_kept_whatever_stands_around_it() -> None:
    text = text_of(
        "<main><header><h1>One<a class='headerlink' href='#one'>¶</a></h1></header>"
        "<section id='cookies'><h2>Cookies</h2><p>They are text here.</p></section>"
        "<section id='navigation'><h2><a href='#x'>Two <code>x_y</code></a></h2><p>t</p></section>"
        "<details><summary><h3>Three</h3></summary>t</details>"
        "<div class='sl-heading-wrapper'><h4 id='f'>Four</h4><a class='sl-anchor-link' href='#f'>"
        "<span class='sr-only'>Section titled “Four”</span></a></div><p>t</p>"
        "<div role='heading' aria-level='2'>Five</div><p>t</p>"
        "<h2><a class='toc-backref' href='#id1'>Six</a><a class='headerlink' href='#s'>¶</a></h2>"
        "<p>t</p></main>"
    )
    headings = re.findall(r"^#+ .*$", text, re.MULTILINE)
    assert headings == [
        "# One", "## Cookies", "## Two `x_y`", "### Three", "#### Four", "## Five", "## Six",
    ]  # fmt: skip
    assert "Section titled" not in text and "They are text here." in text


@pytest.mark.parametrize(
    "block",
    [
        "<pre>{}</pre>",
        "<pre><code class='language-yaml'>{}</code></pre>",
        "<div class='highlight-yaml notranslate'><div class='highlight'><pre><span>"
        "</span>{}\n</pre></div></div>",
        "<table class='highlighttable'><tr><td class='linenos'><div class='linenodiv'><pre>1\n2\n3"
        "</pre></div></td><td class='code'><div class='highlight'><pre>{}</pre></div>"
        "</td></tr></table>",
    ],
)
def test_a_code_block_is_kept_to_the_letter(block: str) -> None:
    code = "server:\n  port: 8080\n\n\n  name: a_b * c_d  # &lt;T&gt;"
    text = text_of(f"<main><h1>C</h1>{block.format(code)}</main>")
    assert [found for _, found in fences(text)] == [f"{code.replace('&lt;T&gt;', '<T>')}\n"]


@pytest.mark.parametrize("lines", [2, 3, 12])
def test_code_with_line_anchors_is_kept_however_short(lines: int) -> None:
    """MkDocs Material's markup, whose short blocks a reader of news takes for a list of links."""
    shown = [f"key_{n}: {n}" for n in range(lines)]
    code = "".join(
        f'<span id="__span-0-{n}"><a id="__codelineno-0-{n}" name="__codelineno-0-{n}" '
        f'href="#__codelineno-0-{n}"></a><span class="nt">{line}</span>\n</span>'
        for n, line in enumerate(shown)
    )
    text = text_of(
        f"<main><article><h1>C</h1>{LONG}<div class='language-yaml highlight'><pre><span></span>"
        f"<button class='md-clipboard'>Copy</button><code>{code}</code></pre></div>"
        "</article></main>"
    )
    assert fences(text) == [("yaml", "".join(f"{line}\n" for line in shown))]
    assert "Copy" not in text


@pytest.mark.parametrize(
    "lines",
    [
        "<span class='line'>a = 1</span>\n<span class='line'>  b = 2</span>",  # Shiki
        "<div class='ec-line'><div class='code'>a = 1</div></div><div class='ec-line'>"
        "<div class='code'>"
        "  b = 2</div></div>",  # Expressive Code
        "<span class='token-line'>a = 1<br></span><span class='token-line'>  b = 2<br></span>",
        "a = 1<br>  b = 2",
    ],
)
def test_lines_of_code_are_lines_whatever_makes_them(lines: str) -> None:
    text = text_of(f"<main><pre data-language='python'><code>{lines}</code></pre></main>")
    assert fences(text) == [("python", "a = 1\n  b = 2\n")]


def test_code_that_holds_a_fence_does_not_end_its_block() -> None:
    text = text_of("<pre>```yaml\na: 1\n```\n</pre><p>after</p>")
    assert text == "````\n```yaml\na: 1\n```\n````\n\nafter"


def test_tables_keep_every_cell_and_one_word_ones_too() -> None:
    text = text_of(
        "<h1>Prices</h1><table><thead><tr><th>Item</th><th>EUR</th></tr></thead><tbody>"
        "<tr><td>Apple</td><td>1.20</td></tr><tr><td rowspan='2'>Pear</td><td>2</td></tr>"
        "<tr><td>3<br>4</td></tr></tbody></table>"
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n")[2:]]
    assert rows[0] == ["Item", "EUR"] and set("".join(rows[1])) == {"-"}
    assert rows[2:] == [["Apple", "1.20"], ["Pear", "2"], ["Pear", "3 4"]]


def test_a_table_that_arranges_blocks_gives_them_up_whole() -> None:
    text = text_of(
        "<table><tr><td><pre>x = 1\n  y</pre></td><td><h3>Inner</h3><ul><li>one</li>"
        "</ul></td></tr></table>"
        "<table><tr><td><p>Alone</p></td></tr></table>"
    )
    assert fences(text) == [("", "x = 1\n  y\n")]
    assert "### Inner" in text and "- one" in text and "Alone" in text and "|" not in text


@pytest.mark.parametrize(
    "box",
    [
        "<div class='admonition warning'><p class='admonition-title'>Warning</p>"
        "<p>Do not.</p></div>",
        "<aside class='admonition warning'><p class='admonition-title'>Warning</p>"
        "<p>Do not.</p></aside>",
        "<aside aria-label='Warning' class='starlight-aside starlight-aside--caution'><p class="
        "'starlight-aside__title' aria-hidden='true'><svg><path/></svg>Warning</p><div>"
        "<p>Do not.</p></div></aside>",
        "<details class='warning'><summary>Warning</summary><p>Do not.</p></details>",
        "<div class='note'><table><tr><td rowspan='2'><img src='n.png'></td><th>Warning"
        "</th></tr><tr>"
        "<td><p>Do not.</p></td></tr></table></div>",
        "<aside class='sidebar'><p class='sidebar-title'>Warning</p><p>Do not.</p></aside>",
    ],
)
def test_admonitions_are_text(box: str) -> None:
    text = text_of(f"<main><h1>T</h1>{LONG}{box}{LONG}</main>")
    assert re.search(r"Warning\W+Do not\.", text)


def test_definitions_and_signatures_are_lines_of_their_own() -> None:
    text = text_of(
        "<dl class='py function'><dt class='sig' id='f'><span>max_pool_size</span>(<em>n</em>)"
        "<a class='headerlink' href='#f'>¶</a></dt><dd><p>Sets it.</p><pre>x</pre></dd>"
        "<dt>min</dt><dd>One.</dd></dl>"
    )
    assert text.split("\n\n") == ["max_pool_size(*n*)", "Sets it.", "```\nx\n```", "min", "One."]


def test_lists_keep_their_levels_and_code() -> None:
    text = text_of("<ol><li>a<ul><li>b</li></ul></li><li><p>c</p><pre>d</pre></li></ol>")
    assert [line.strip() for line in text.split("\n") if line.strip()] == [
        "1. a", "- b", "2. c", "```", "d", "```",
    ]  # fmt: skip


# ---------------------------------------------------------------- what must not be in it


@pytest.mark.parametrize(
    "furniture",
    [
        "<nav><a href='/x'>UNWANTED</a></nav>",
        "<div role='navigation'>UNWANTED</div>",
        "<div class='sphinxsidebar'><h3>UNWANTED</h3></div>",
        "<div class='wy-nav-side'><ul><li>UNWANTED</li></ul></div>",
        "<div id='cookie-banner'>UNWANTED</div>",
        "<div class='md-consent'><h4>UNWANTED</h4></div>",
        "<div id='onetrust-consent-sdk'>UNWANTED</div>",
        "<ul class='breadcrumbs'><li>UNWANTED</li></ul>",
        "<footer><p>UNWANTED</p></footer>",
        "<button>UNWANTED</button>",
        "<p hidden>UNWANTED</p>",
        "<div style='display: none'>UNWANTED</div>",
        "<svg><title>UNWANTED</title></svg>",
        "<template>UNWANTED</template>",
        "<!-- UNWANTED -->",
        "<a href='data:text/plain;base64,UNWANTED'>here</a>",
        "<img src='data:image/png;base64,UNWANTED'>",
    ],
)
@pytest.mark.parametrize("main", ["main", "div"])
def test_furniture_is_left_out_with_and_without_a_main_part(furniture: str, main: str) -> None:
    for body in (
        f"{furniture}<{main}><h1>Title</h1><p>Wanted words.</p></{main}>",
        f"<{main}><h1>Title</h1>{furniture}<p>Wanted words.</p></{main}>",
    ):
        text = text_of(body)
        assert "UNWANTED" not in text
        assert "# Title" in text and "Wanted words." in text


def test_the_header_of_a_page_is_furniture_and_that_of_its_text_is_not() -> None:
    text = text_of(
        "<header><a href='/'>UNWANTED</a></header>"
        "<article><header><p>By Ada</p><h1>T</h1></header><p>word</p></article>"
    )
    assert text == "By Ada\n\n# T\n\nword"


def test_what_only_waits_for_its_tab_is_text() -> None:
    text = text_of(
        "<section role='tabpanel'>One</section><section role='tabpanel' hidden>Two</section>"
    )
    assert "One" in text and "Two" in text


def test_a_page_whose_body_is_named_for_its_navigation_is_read() -> None:
    body = "<body class='wy-body-for-nav'><div class='wy-grid-for-nav'><h1>A</h1><p>word</p></div>"
    assert read(f"<html>{body}").text == "# A\n\nword"


def test_pictures_say_what_their_authors_say() -> None:
    text = text_of(
        "<h1><img src='l.png' alt='logo.png (6 bytes)'>Name</h1><p><img src='x' alt='A graph.'></p>"
    )
    assert text == "# Name\n\nA graph."


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 5000 + "deep words" + "</div>" * 5000,
        "<ul><li>" * 900 + "deep words",
        "<table><tr><td>" * 300 + "deep words",
        "<blockquote>" * 1500 + "deep words",
    ],
)
def test_a_page_nested_without_end_is_still_read_or_refused(page: str) -> None:
    try:
        assert "deep words" in read(f"<html><body><p>x</p>{page}").text
    except InvalidRequest as error:
        assert "HTML" in error.message


def test_cells_that_claim_to_span_the_world_do_not_fill_it() -> None:
    cells = "<td colspan='65534' rowspan='65534'>" + "x" * 5000 + "</td>"
    rows = "<tr>" + cells * 2 + "</tr>" + "<tr><td>y</td></tr>" * 2000
    assert len(read_html(f"<body><p>t</p><table>{rows}</table>").text) < 3_000_000
