"""Every kind of file: its text, its title, and each way of being unreadable."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.chunk_lines import parse_chunk_lines
from chunkcache.retrieval.documents import DocumentKind
from chunkcache.retrieval.loaders import SUFFIXES, Extracted, load
from chunkcache.retrieval.office import OFFICE_SUFFIXES

LIMIT = 1 << 20
BINARY_SUFFIXES = {".pdf", *OFFICE_SUFFIXES}  # each file of these is a process: see test_confined
TEXT_SUFFIXES = [suffix for suffix in SUFFIXES if suffix not in BINARY_SUFFIXES]


def read(name: str, data: bytes | str) -> Extracted:
    return load(name, data.encode() if isinstance(data, str) else data, LIMIT)


def reason(name: str, data: bytes | str, limit_bytes: int = LIMIT) -> str:
    with pytest.raises(InvalidRequest) as caught:
        load(name, data.encode() if isinstance(data, str) else data, limit_bytes)
    return caught.value.message


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("größer\r\nals\rzwei".encode(), "größer\nals\nzwei"),
        ("Ωμέγα".encode("utf-16"), "Ωμέγα"),
        (b"\xfe\xff" + "Ωμέγα".encode("utf-16-be"), "Ωμέγα"),
        ("Ωμέγα".encode("utf-32"), "Ωμέγα"),
    ],
)
def test_text_is_decoded_by_mark_or_as_utf8_with_plain_line_ends(data: bytes, text: str) -> None:
    assert read("a.txt", data).text == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Où est passé l'élève français ? Il était très fatigué après Noël.", "cp1252"),
        ("Die größte Übung für Öl und Äpfel in der Straße, schöne Grüße.", "latin-1"),
        ("He said \u201chello\u201d \u2013 and it\u2019s fine, isn't it?", "cp1252"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy. Večer půjdeme na večeři.", "cp1250"),
        ("Wczoraj poszedłem do sklepu, żeby kupić świeże bułki, gęś i ćwikłę.", "cp1250"),
        ("Съешь ещё этих мягких французских булок, да выпей чаю.", "cp1251"),
        ("これは日本語の文章です。東京に住んでいます。", "shift_jis"),
    ],
)
def test_another_encoding_is_guessed(text: str, encoding: str) -> None:
    assert read("a.txt", (text * 3).encode(encoding)).text == text * 3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b" \n\t ", "the file is empty"),
        (b"\xef\xbb\xbf", "there is no text in it"),
        (b"\x7fELF\x00\x00", "a binary file"),
        (b"\xff\xfea\x00\x00", "not utf-16"),
    ],
)
def test_what_is_not_text_is_refused_with_the_reason(data: bytes, says: str) -> None:
    assert says in reason("a.txt", data)


def test_undecodable_bytes_are_refused() -> None:
    noise = bytes(range(0x80, 0xA0)) * 8 + b"\x01\x02\x03\x81\x8d\x8f"
    assert "UTF-8" in reason("a.txt", noise)


def test_a_file_over_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    assert load("a.txt", b"12345", 5).text == "12345"
    assert "6 bytes, at most 5" in reason("a.txt", b"123456", 5)


@pytest.mark.parametrize("name", ["picture.png", "noend", "archive.tar.gz", ".txt"])
def test_unknown_types_are_refused_naming_those_there_are(name: str) -> None:
    assert "unknown type" in reason(name, "x") and ".pdf" in reason(name, "x")


def test_the_suffix_may_be_in_capitals() -> None:
    assert read("README.MD", "# Hi").kind is DocumentKind.MARKDOWN


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("notes.txt", "# no heading here", "notes.txt"),
        ("a.md", "intro\n\n## The  *second* ##\ntext", "The *second*"),
        ("a.md", "```\n# not this\n```\n# but this", "but this"),
        ("a.md", "~~~\n```\n# not this\n~~~\n# but this", "but this"),
        ("a.md", "Title\n=====\n\ntext", "Title"),
        ("a.md", "no heading\n\n---\n", "a.md"),
        ("a.md", "#hashtag is none", "a.md"),
        ("a.rst", "====\nBook\n====\n\nChapter\n-------\n", "Book"),
        ("a.rst", ".. note::\n\nChapter one\n-----------\n", "Chapter one"),
        ("a.rst", "too long a title\n---\n", "a.rst"),
        ("bad\nname.txt", "x", "bad name.txt"),
        ("by\udcfftes.txt", "x", "by\\udcfftes.txt"),
    ],
)
def test_titles(name: str, text: str, title: str) -> None:
    assert read(name, text).title == title


@given(st.binary(max_size=200), st.sampled_from(TEXT_SUFFIXES))
@settings(deadline=None, max_examples=150)
def test_no_bytes_do_worse_than_be_refused(data: bytes, suffix: str) -> None:
    try:
        found = read(f"a{suffix}", data)
    except InvalidRequest:
        return
    assert found.text.strip() and found.title
    found.text.encode()


# ---------------------------------------------------------------- chunks


def test_chunk_lines_are_taken_as_they_are() -> None:
    lines = [
        {"text": " keeps\nits form ", "title": "A  b", "url": "https://e.org", "id": "x-1"},
        {"text": "second", "id": 0, "title": None, "unknown": [1]},
    ]
    data = "\ufeff" + "\r\n\n".join(json.dumps(line) for line in lines) + "\n"
    found = read("corpus.chunks.jsonl", data)
    assert found.kind is DocumentKind.CHUNKS
    first, second = found.chunks
    assert (first.text, first.title, first.url, first.id) == (
        " keeps\nits form ", "A b", "https://e.org", "x-1",
    )  # fmt: skip
    assert (second.text, second.title, second.id, second.line) == ("second", "", "0", 3)
    assert found.text == " keeps\nits form \n\nsecond"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"title": "a"}', "line 1 has no text"),
        ('{"text": null}', "line 1 has a text that is not a string"),
        ('{"text": "  "}', "line 1 has no text"),
        ('{"text": 5}', "line 1 has a text that is not a string"),
        ('{"text": "a", "url": {}}', "line 1 has a url that is not a string"),
        ('{"text": "a", "id": true}', "line 1 has a id that is not a string"),
        ('{"text": "a", "id": "no spaces"}', "line 1 has an id that is not"),
        ('{"text": "a", "id": "1"}\n\n{"text": "b", "id": 1}', "line 3 has the id '1' of line 1"),
        ('{"text": "\\ud83d half"}', "line 1 has a text with half a surrogate pair"),
    ],
)
def test_a_wrong_line_is_named_and_the_others_are_taken(lines: str, says: str) -> None:
    good = '{"text": "good"}'
    chunks, problems = parse_chunk_lines(f"{lines}\n\n{good}")
    assert len(problems) == 1 and says in problems[0]
    assert chunks[-1].text == "good"
    assert len(chunks) == len(lines.split("\n")) - lines.count("\n\n")


def test_a_file_of_wrong_lines_alone_is_refused_with_the_first_reason() -> None:
    assert "line 1 has no text" in reason("a.jsonl", '{}\n{"text": 5}')


def test_a_file_with_some_wrong_lines_says_which() -> None:
    found = read("a.jsonl", '{"text": "one"}\n{}\n{"text": "two"}\nrubbish')
    assert found.text == "one\n\ntwo"
    assert [p.partition(" has")[0].partition(" is")[0] for p in found.problems] == [
        "line 2", "line 4",
    ]  # fmt: skip
