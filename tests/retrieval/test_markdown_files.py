"""Markdown and reStructuredText files: title, what is left out, what is included, what is kept."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.documents import DocumentKind
from chunkcache.retrieval.includes import Includer
from chunkcache.retrieval.loaders import Extracted, load
from chunkcache.retrieval.markdown import looks_like_markdown
from chunkcache.retrieval.markdown_reader import read_markdown
from chunkcache.retrieval.rst_reader import rst_to_html

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT = 1 << 20
BASE64 = "iVBORw0KGgo" * 30


def read(name: str, text: str) -> Extracted:
    return load(name, text.encode(), LIMIT)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("````md\n```\n# not this\n```\n# nor this\n````\n# but this", "but this"),
        ("~~~~\n# not this\n~~~\n~~~~\n# but this", "but this"),
        ("    # code, not this\n\n# but this", "but this"),
        ("<!-- # not this -->\n<!--\n# nor this\n\n# nor that\n-->\n# but this", "but this"),
        (
            "<h1 align='center'>\n  <img src='a.png'> The <em>tool</em>\n</h1>\n\n## Usage",
            "The tool",
        ),
        ("<div>\n<h1>Inside</h1>\n<p>x</p>\n</div>\n\n# Later", "Inside"),
        ("# [![badge](b.svg)](https://e.org) Name {#anchor}\n", "Name"),
        ("Two words\n---\n\ntext", "Two words"),
        ("- item\n\n  # in a list\n\n# but this", "but this"),
        ("#\n\n# but this", "but this"),
        ("#tag\n\n####### seven\n", "a.md"),
        ("# Closed ##", "Closed"),
    ],
)
def test_the_title_is_the_first_real_heading(text: str, title: str) -> None:
    assert read("a.md", text).title == title


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ("---\ntitle: From front\ntags: [a, b]\n---\n", "From front"),
        ('---\ntitle: "Quoted: with colon"\n---\n', "Quoted: with colon"),
        ("---\ntitle: broken: colon\nx: {{ y }}\n---\n", "broken: colon"),
        ("---\ntitle: 2024\n...\n", "2024"),
        ("---\nlayout: page\n---\n", "Heading"),
        ("---\n---\n", "Heading"),
        ("+++\ntitle = 'From toml'\ndraft = true\n+++\n", "From toml"),
        ("+++\nbroken toml\ntitle = 'Still'\n+++\n", "Heading"),
        ("---\r\ntitle: Other ends\r\n---\r\n", "Other ends"),
    ],
)
def test_front_matter_gives_the_title_and_stays_out(front: str, title: str) -> None:
    found = read("a.md", f"{front}# Heading\n\nWords.\n")
    assert found.title == title
    if "broken toml" not in front:
        assert found.text.strip() == "# Heading\n\nWords."


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA text between two breaks.\n\n---\n\nMore.",
        "---\n- a\n- b\n---\n\nMore.",
        "---\ntitle: x",
    ],
)
def test_what_only_looks_like_front_matter_is_text(text: str) -> None:
    assert read("a.md", text).text == text


@pytest.mark.parametrize(
    "picture",
    [
        f"![A graph](data:image/png;base64,{BASE64})",
        f"![A graph](<data:image/png;base64,{BASE64}>)",
        f'![A graph](data:image/png;base64,{BASE64} "with a title")',
        f"![A graph][g]\n\n[g]: data:image/png;base64,{BASE64}",
        f"![A graph][g]\n\n[g]: <data:image/png;base64,{BASE64}> 'title'",
        f'<img alt="A graph" width=3 src="data:image/png;base64,{BASE64}" />',
        f"<img src='data:image/png;base64,{BASE64}'\n  alt='A graph'>",
        '<img alt="A graph" src="data:image/svg+xml;utf8,<svg xmlns=\'http://e.org\'><path/></svg>">',
        f'<picture><source srcset="data:image/webp;base64,{BASE64}"><img src="g.png" alt="A graph">'
        "</picture>",
        f"A graph <a href='data:text/csv;base64,{BASE64}'>as a file</a>",
        f"A graph:\n\n```css\na {{ background: url(data:image/png;base64,{BASE64}) }}\n```",
    ],
)
def test_pictures_as_data_leave_their_words_only(picture: str) -> None:
    found = read("a.md", f"# T\n\nBefore.\n\n{picture}\n\nAfter.")
    assert "iVBOR" not in found.text and "<svg" not in found.text
    assert "A graph" in found.text and "Before." in found.text and "After." in found.text


def test_code_that_shows_how_it_is_done_stays() -> None:
    text = "```md\n![dot](data:image/gif;base64,R0lGOD)\n<!-- comment -->\n```\n\n`<!-- a -->` b"
    assert read("a.md", text).text == text


def test_a_picture_that_is_a_file_stays() -> None:
    text = 'See ![a graph](graph.png) and <img src="data.png" alt="b">.'
    assert read("a.md", text).text == text


@pytest.mark.parametrize(
    "unit",
    ["<!--", "![a](data:", "<img ", '<img "', "[", "![", "<h1>", "data:a/b,", "[a]: data:\n"],
)
def test_a_text_of_beginnings_without_ends_is_read(unit: str) -> None:
    """Looking for each end up to the end of the text would take hours here."""
    text, _ = read_markdown(unit * 100_000)
    assert len(text) <= 100_000 * len(unit)


# ---------------------------------------------------------------- reStructuredText

RST = """\
.. _top:

=====
Pools
=====

Set ``max_pool_size`` and see :ref:`the limits <limits>`, :func:`~app.pool.open`, |undefined|.

.. note::

   Not *more* than that.

Limits
======

+-----------+-------+
| name      | limit |
+===========+=======+
| audit     | 50    |
+-----------+-------+

=====  =====
a      b
=====  =====
1      2
=====  =====

.. list-table::
   :header-rows: 1

   * - k
     - v
   * - x
     - y

.. code-block:: python
   :linenos:
   :emphasize-lines: 1

   def a_b():

       return "*"

.. versionadded:: 5.1
   The limits.

.. py:function:: pool(a, b_c)
                 pool(d)
   :module: app

   Opens one. See :class:`Pool`.

   .. warning::
      Never two.

   .. code-block:: c++
      :caption: x

      std::vector<int> v;

.. toctree::
   :maxdepth: 2

   unwanted/page

.. tab-set::

   .. tab-item:: Linux

      apt it

Literal::

    as *is*

Term
  Its meaning.

Sub part
--------

The end.
"""


def test_rst_keeps_titles_tables_code_and_what_sphinx_adds() -> None:
    found = read("a.rst", RST)
    assert (found.kind, found.title) == (DocumentKind.MARKDOWN, "Pools")
    headings = re.findall(r"^#+ .*$", found.text, re.MULTILINE)
    assert headings == ["# Pools", "## Limits", "### Sub part"]
    for kept in (
        "`max_pool_size`", "the limits", "`app.pool.open`", "|undefined|", "Not *more* than that.",
        "| name | limit |", "| audit | 50 |", "| 1 | 2 |", "| k | v |", "| x | y |",
        '```python\ndef a_b():\n\n    return "*"\n```', "versionadded 5.1", "The limits.",
        "pool(a, b_c)", "pool(d)", "`Pool`", "Never two.", "```c++\nstd::vector<int> v;\n```",
        "Linux", "apt it", "```\nas *is*\n```", "Term", "Its meaning.", "The end.",
    ):  # fmt: skip
        assert kept in found.text, kept
    for left_out in ("unwanted/page", "Unknown", "emphasize-lines", ":ref:", "System Message"):
        assert left_out not in found.text, left_out


@pytest.mark.parametrize(
    "text",
    [
        ".. include:: /etc/hostname\n\nword", ".. raw:: html\n\n   <b>UNWANTED</b>\n\nword",
        ".. csv-table::\n   :file: /etc/hostname\n\nword", ".. image:: data:UNWANTED\n\nword",
        "word\n\n" + "   x\n" * 3 + "\n" + "=" * 4 + "\n", "word `unclosed |and *so on",
    ],
)  # fmt: skip
def test_rst_reads_nothing_but_its_text(text: str) -> None:
    found = read("a.rst", text).text
    assert "word" in found and "UNWANTED" not in found
    with open("/etc/hostname", encoding="utf-8") as stream:
        assert stream.read().strip() not in found


def test_substitutions_do_not_unfold_without_end() -> None:
    text = ".. |a0| replace:: words words words\n"
    text += "".join(f".. |a{n + 1}| replace:: {f'|a{n}| ' * 10}\n" for n in range(12))
    try:
        assert len(read("a.rst", f"{text}\nHere: |a12|").text) < 1 << 20
    except InvalidRequest as error:
        assert "reStructuredText" in error.message


def test_rst_beyond_what_docutils_takes_is_refused_by_name() -> None:
    nested = "\n\n".join(" " * depth + "x" for depth in range(1500))
    with pytest.raises(InvalidRequest, match=r"no reStructuredText: .*Hint: name it \.txt"):
        rst_to_html(nested)


# ---------------------------------------------------------------- includes


@pytest.fixture
def expand(tmp_path: Path) -> Callable[..., str]:
    """`expand(text)`: the text as a file in `docs/part`, with what it includes."""
    folder = tmp_path / "docs" / "part"
    folder.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("SECRET")
    (tmp_path / "docs" / "link.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "docs" / "shared.txt").write_text("shared line\n")
    (folder / "code.py").write_text("one\ntwo\nthree\n# end\nfour\n")
    (folder / "loop.rst").write_text(".. include:: loop.rst\n.. include:: other.rst\n")
    (folder / "other.rst").write_text(".. include:: loop.rst\n")

    def run(text: str, limit: int = 10_000) -> str:
        includer = Includer(tmp_path / "docs", lambda path: path.read_text(), limit)
        return includer.expand(text, folder / "a.rst")

    return run


@pytest.mark.parametrize(
    ("directive", "text"),
    [
        (".. include:: ../shared.txt", "shared line\n"),
        (".. include:: /shared.txt", "shared line\n"),
        ("   .. include:: ../shared.txt", "   shared line\n"),
        (".. include:: code.py\n   :start-line: 1\n   :end-line: 3", "two\nthree"),
        (".. include:: code.py\n   :start-after: two\n   :end-before: # end", "\nthree\n"),
        (
            ".. literalinclude:: code.py\n   :language: python\n   :end-line: 1",
            ".. code-block:: python\n\n   one",
        ),
        (".. include:: code.py\n   :code: c\n   :end-line: 1", ".. code-block:: c\n\n   one"),
    ],
)
def test_an_include_is_followed(expand: Callable[..., str], directive: str, text: str) -> None:
    assert expand(f"before\n\n{directive}\n\nafter") == f"before\n\n{text}\n\nafter"


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.txt", "../link.txt", "/../secret.txt", "//etc/hostname", "/etc/hostname",
        "missing.txt", "a.rst", ".", "<isonum.txt>", "x" * 5000, "nul\0.txt",
    ],
)  # fmt: skip
def test_an_include_that_leads_outside_or_nowhere_is_not(
    expand: Callable[..., str], name: str
) -> None:
    text = f".. include:: {name}"
    assert expand(text) == text


def test_includes_that_include_each_other_end(expand: Callable[..., str]) -> None:
    assert "include" in expand(".. include:: loop.rst")


def test_more_text_than_may_be_read_is_refused(expand: Callable[..., str]) -> None:
    with pytest.raises(InvalidRequest, match=r"raise retrieval\.max_file_bytes"):
        expand(".. include:: ../shared.txt\n" * 20, limit=100)


@pytest.mark.parametrize(
    ("text", "is_markdown"),
    [
        ("# A\n\ntext", True),
        ("text\n\n## B\n\ntext", True),
        ("text\r\n\r\n## B\r\n\r\ntext", True),
        ("## B", True),
        ("text\n\n```py\nx = 1\n```\n", True),
        ("a | b\n--|--\n1 | 2", True),
        ("", False),
        ("text\n\nmore text", False),
        ("#include <x>\n\nint y;", False),
        ("x = 1\n# a comment\ny = 2", False),
        ("# a comment\ny = 2", False),
        ("    indented\n    lines", False),
        ("A title\n=======\n\ntext", False),
    ],
)
def test_what_looks_like_markdown(text: str, is_markdown: bool) -> None:
    assert looks_like_markdown(text) == is_markdown
