"""What each HTML reader keeps of real documentation: headings, table rows, code, items, names.

    python benchmarks/bench_html.py sphinx=docs/_build/html mkdocs=site --out results/html.jsonl

What there is to keep is counted in the page's main part by rules of its own, not by the product's
reader. A heading counts where a line of the output is that heading; a row, where one line has all
its cells; a code block, where its lines stand in a row with their indentation, blank lines too; a
list item and a name, where their words stand as they are. Noise are link texts of navigation.
Readers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lxml.html
from reporting import command_line, emit, surroundings

from chunkcache.retrieval.html_reader import read_html

Reader = Callable[[str], str]
KINDS = ("headings", "rows", "code", "items", "names", "noise")
_NAME = re.compile(r"\b[A-Za-z_]\w*(?:(?:::|\.)[A-Za-z_]\w+)+|\b\w*[A-Za-z]_\w+")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


def readers() -> dict[str, Reader]:
    """The readers to compare, as far as they are installed."""
    made: dict[str, tuple[str, Callable[[], Reader]]] = {
        "trafilatura": ("trafilatura", _trafilatura),
        "markdownify": ("markdownify", _markdownify),
        "html2text": ("html2text", _html2text),
        "html-to-markdown": ("html-to-markdown", _html_to_markdown),
        "readability + markdownify": ("readability-lxml", _readability),
        "justext": ("justext", _justext),
    }
    found: dict[str, Reader] = {"chunkcache": lambda page: read_html(page).text}
    for name, (package, make) in made.items():
        try:
            found[f"{name} {version(package)}"] = make()
        except (PackageNotFoundError, ImportError) as error:
            print(f"left out: {name} ({error})")
    return found


def _trafilatura() -> Reader:
    import trafilatura

    def read(page: str) -> str:
        return (
            trafilatura.extract(
                page, output_format="markdown", include_comments=False, favor_recall=True
            )
            or ""
        )

    return read


def _markdownify() -> Reader:
    from markdownify import markdownify

    return lambda page: markdownify(
        page, heading_style="ATX", strip=["a"], escape_underscores=False, escape_asterisks=False
    )


def _html2text() -> Reader:
    import html2text

    def read(page: str) -> str:
        converter = html2text.HTML2Text(bodywidth=0)
        converter.ignore_links = converter.ignore_images = True
        return converter.handle(page)

    return read


def _html_to_markdown() -> Reader:
    import html_to_markdown

    def read(page: str) -> str:
        result: Any = html_to_markdown.convert(page)
        return result if isinstance(result, str) else result.content or ""

    return read


def _readability() -> Reader:
    from markdownify import markdownify
    from readability import Document

    return lambda page: markdownify(
        Document(page).summary(), heading_style="ATX", strip=["a"], escape_underscores=False,
        escape_asterisks=False,
    )  # fmt: skip


def _justext() -> Reader:
    import justext

    def read(page: str) -> str:
        words = justext.get_stoplist("English")
        return "\n\n".join(
            f"# {part.text}" if part.is_heading else part.text
            for part in justext.justext(page, words)
            if not part.is_boilerplate
        )

    return read


def letters(text: str) -> str:
    """What of a text every form of writing it has in common."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def to_keep(page: str) -> dict[str, list[Any]]:
    """What is to be kept of a page, by kind; and what is not."""
    parser = lxml.html.HTMLParser(encoding="utf-8")
    tree = lxml.html.document_fromstring(page.encode(), parser=parser)
    for part in list(tree.iter("script", "style", "template", "button", "noscript", "svg")):
        part.drop_tree()
    for part in tree.xpath(
        "//a[contains(@class, 'headerlink')] | //*[contains(@class, 'linenos')]"
    ):
        part.drop_tree()
    links = [link.text_content() for link in tree.xpath("//nav//a | //*[@role='navigation']//a")]
    for part in tree.xpath("//nav | //*[@role='navigation'] | //body/footer | //body/header"):
        if part.getparent() is not None:
            part.drop_tree()
    main = (tree.xpath("//article | //main | //*[@role='main']") or tree.xpath("//body"))[0]
    text = main.text_content()
    seen = letters(text)
    return {
        "headings": [h for h in (letters(p.text_content()) for p in main.iter(*_HEADINGS)) if h],
        "rows": list(_rows(main)),
        "code": [c for c in (_lines(p.text_content()) for p in main.iter("pre")) if c],
        "items": [i for i in (letters(_own_text(p)) for p in main.iter("li", "dt")) if i],
        "names": sorted(set(_NAME.findall(text))),
        "noise": sorted({w for w in map(letters, links) if len(w) > 8 and w not in seen}),
    }


def _rows(main: Any) -> Iterator[list[str]]:
    for row in main.iter("tr"):
        cells = list(row.iterchildren("td", "th"))
        if len(cells) > 1 and not row.xpath(".//pre | .//table | ancestor::table//table"):
            words = [letters(cell.text_content()) for cell in cells]
            if any(words):
                yield words


def _own_text(item: Any) -> str:
    words = "./text() | ./*[not(self::ul or self::ol or self::pre)]//text()[not(ancestor::pre)]"
    return "".join(item.xpath(words))


def _lines(code: str) -> list[str]:
    return [line.rstrip() for line in code.strip("\n").split("\n")] if code.strip() else []


def kept(found: str, wanted: dict[str, list[Any]]) -> Counter[str]:
    """How many of each kind the output has."""
    lines = [line.rstrip() for line in found.split("\n")]
    headings = Counter(letters(line) for line in lines if line.lstrip().startswith("#"))
    words = [letters(line) for line in lines]
    whole = letters(found)
    count: Counter[str] = Counter()
    for heading in wanted["headings"]:
        count["headings"] += headings[heading] > 0
        headings[heading] -= 1
    for row in wanted["rows"]:
        count["rows"] += any(_in_order(row, line) for line in words)
    count["code"] += sum(_stands(code, lines) for code in wanted["code"])
    count["items"] += sum(item in whole for item in wanted["items"])
    count["names"] += sum(name in found for name in wanted["names"])
    count["noise"] += sum(link in whole for link in wanted["noise"])
    return count


def _in_order(cells: list[str], line: str) -> bool:
    place = 0
    for cell in cells:
        place = line.find(cell, place)
        if place < 0:
            return False
        place += len(cell)
    return True


def _stands(code: list[str], lines: list[str]) -> bool:
    """Whether the lines stand there one after another, all behind the same few characters."""
    for place, line in enumerate(lines):
        if line.endswith(code[0]):
            before = line[: len(line) - len(code[0])]
            there = lines[place : place + len(code)]
            if len(there) == len(code) and all(map(partial(_is_line, before), code, there)):
                return True
    return False


def _is_line(before: str, wanted: str, line: str) -> bool:
    """Whether a line is the wanted one; of a blank one what stands before it may be cut."""
    return line == f"{before}{wanted}".rstrip() if wanted else not line.strip(" >")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sites", nargs="+", metavar="name=folder")
    parser.add_argument("--pages", type=int, default=1000, help="at most, of each site")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "html", "command": command_line(), "seed": None, "sites": {},
    }  # fmt: skip
    for site in arguments.sites:
        name, _, folder = site.partition("=")
        paths = sorted(Path(folder).rglob("*.html"))[: arguments.pages]
        pages = [path.read_bytes().decode("utf-8", "replace") for path in paths]
        wanted = [to_keep(page) for page in pages]
        total = Counter({kind: sum(len(w[kind]) for w in wanted) for kind in KINDS})
        print(f"\n{name}: {len(pages)} pages, {sum(map(len, pages)) / 1e6:.1f} MB")
        print(f"{'':32}" + "".join(f"{kind:>10}" for kind in KINDS) + "   seconds")
        print(f"{'there are':32}" + "".join(f"{total[kind]:10}" for kind in KINDS))
        rows = result["sites"][name] = {"there are": dict(total)}
        for reader, read in readers().items():
            count: Counter[str] = Counter()
            before = time.perf_counter()
            found = [read(page) for page in pages]
            seconds = time.perf_counter() - before
            for text, want in zip(found, wanted, strict=True):
                count += kept(text, want)
            rows[reader] = {**count, "seconds": round(seconds, 1)}
            print(f"{reader:32}" + "".join(f"{count[k]:10}" for k in KINDS) + f"{seconds:10.1f}")
    emit({**result, **surroundings("lxml", "markdownify", "beautifulsoup4")}, arguments.out)


if __name__ == "__main__":
    main()
