"""How Markdown is packed: sections, headings, code and tables, and what is said before a piece."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.retrieval.chunking import split_document
from chunkcache.retrieval.documents import Document, DocumentKind, searched_text
from chunkcache.retrieval.markdown import Kind, blocks_of
from chunkcache.retrieval.splitter import Splitter

if TYPE_CHECKING:
    from chunkcache.chunk import Chunk
    from chunkcache.retrieval.splitter import Piece

WORDS = "The quick brown fox jumps over the lazy dog. "


def split(tokenizer: Any, text: str, chunk_tokens: int = 64, overlap: int = 0) -> list[Piece]:
    pieces = Splitter(tokenizer, chunk_tokens, overlap).split(text, markdown=True)
    for piece in pieces:
        assert text[piece.start_char : piece.end_char] == piece.text
        assert len(piece.token_ids) <= chunk_tokens
    return pieces


def chunks_of(tokenizer: Any, text: str, title: str, chunk_tokens: int = 64) -> list[Chunk]:
    document = Document("doc-a", title, "", "aa", 1, DocumentKind.MARKDOWN, text)
    return split_document(Splitter(tokenizer, chunk_tokens), document)


def tokens(tokenizer: Any, text: str) -> int:
    return len(Splitter(tokenizer, 9999).encode(text))


def test_every_piece_knows_the_headings_it_stands_under(tokenizer: Any) -> None:
    paths = {
        "ant": ("One",), "bee": ("One", "Two"), "cat": ("One", "Two", "Three"),
        "dog": ("One", "Four"), "eel": ("Five",),
    }  # fmt: skip
    levels = {"One": "#", "Two": "##", "Three": "###", "Four": "##", "Five": "#"}
    text = "owl " * 60 + "".join(
        f"\n\n{levels[path[-1]]} {path[-1]}\n\n{f'{word} ' * 60}" for word, path in paths.items()
    )
    pieces = split(tokenizer, text, 40)
    assert len(pieces) > 12
    for piece in pieces:
        first, _, rest = piece.text.partition("\n")
        own = (first.lstrip("# "),) if first.startswith("#") else ()
        (word,) = set(rest.split() if own else piece.text.split())
        assert (*piece.headings, *own) == paths.get(word, ())


def test_a_piece_that_begins_with_its_heading_has_only_those_above(tokenizer: Any) -> None:
    text = f"# One\n\n{WORDS * 4}\n\n## Two\n\nShort.\n\n## Three\n\n{WORDS}"
    pieces = split(tokenizer, text)
    assert [(p.text.split("\n")[0], p.headings) for p in pieces if p.text.startswith("##")] == [
        ("## Two", ("One",)),
    ]


def test_small_sections_stay_together_and_cut_ones_apart(tokenizer: Any) -> None:
    small = "".join(f"## S{n}\n\nFox {n}.\n\n" for n in range(3))
    pieces = split(tokenizer, f"# T\n\n{small}## Long\n\n{WORDS * 9}\n\n## Tail\n\nDog.")
    assert [p.text.count("## ") for p in pieces if "## S" in p.text] == [3]
    assert pieces[-1].text == "## Tail\n\nDog."


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 60)).map(
            lambda s: f"{'#' * s[0]} heading {s[1]}" if s[0] else "word " * s[1]
        ),
        max_size=25,
    )
)
@settings(deadline=None, max_examples=150)
def test_a_piece_is_never_a_heading_alone(tokenizer: Any, parts: list[str]) -> None:
    text = "\n\n".join(parts)
    pieces = Splitter(tokenizer, 24).split(text, markdown=True)
    words = sum(part.split().count("word") for part in parts)
    for piece in pieces if words else []:  # a text of headings alone has nothing else
        assert [block.kind for block in blocks_of(piece.text)] != [Kind.HEADING]
    assert sum(piece.text.split().count("word") for piece in pieces) == words


@pytest.mark.parametrize("before", [0, 3, 9, 20])
@pytest.mark.parametrize(
    "fence", ["```python\n{}\n```", "~~~~\n{}\n~~~~", "- item\n\n  ```\n  {}\n  ```"]
)
def test_code_that_fits_is_never_cut(tokenizer: Any, before: int, fence: str) -> None:
    block = fence.format(
        "a = fox(1)\n\n\nb = dog(2)".replace("\n", "\n" + "  " * fence.startswith("-"))
    )
    text = f"# T\n\n{'word ' * before}\n\n{block}\n\n{'word ' * 20}"
    assert sum(block in piece.text for piece in split(tokenizer, text, 60)) == 1


def test_longer_code_is_cut_at_line_ends_and_says_what_it_continues(tokenizer: Any) -> None:
    lines = [f"    call_{n}(the_fox, the_dog)" for n in range(20)]
    code = "```python\n" + "\n".join(lines) + "\n```"
    pieces = split(tokenizer, f"# T\n\n{code}\n\nAfter.")
    assert len(pieces) > 3
    assert [line for p in pieces for line in p.text.split("\n") if "call" in line] == lines
    assert [p.opening for p in pieces] == ["", *["```python"] * (len(pieces) - 1)]
    assert not any(piece.text.strip() == "```" for piece in pieces)


def test_tables_are_cut_between_rows_and_repeat_their_header(tokenizer: Any) -> None:
    header = "| queue | limit |\n|---|---|"
    rows = [f"| queue {n} | {n * 10} |" for n in range(30)]
    pieces = split(tokenizer, f"# T\n\n{header}\n" + "\n".join(rows) + "\n\nAfter.")
    assert len(pieces) > 3
    assert [line for p in pieces for line in p.text.split("\n") if "queue " in line][1:] == rows
    continued = [
        p for p in pieces if p.text.startswith("| queue") and not p.text.startswith(header)
    ]
    assert len(continued) == len(pieces) - 1
    for piece in continued:
        assert piece.opening == header
        assert tokens(tokenizer, f"{header}\n{piece.text}") <= 64


def test_a_header_too_large_to_repeat_or_without_words_is_not(tokenizer: Any) -> None:
    rows = "\n".join(f"| fox {n} | dog |" for n in range(30))
    large = f"| {'long words ' * 8} | b |\n|---|---|\n{rows}"
    empty = f"|  |  |\n|---|---|\n{rows}"
    for table in (large, empty):
        pieces = split(tokenizer, table)
        assert len(pieces) > 2 and {piece.opening for piece in pieces} == {""}


def test_one_row_or_line_larger_than_a_chunk_is_still_cut(tokenizer: Any) -> None:
    table = f"| a | b |\n|---|---|\n| x | {'fox ' * 200} |\n| y | z |"
    code = f"```\n{'dog ' * 200}\nshort\n```"
    assert sum(p.text.count("fox") for p in split(tokenizer, table)) == 200
    assert sum(p.text.count("dog") for p in split(tokenizer, code)) == 200


def test_overlap_repeats_prose_and_never_a_heading_code_or_table(tokenizer: Any) -> None:
    code = "\n".join(["fox"] * 60)
    text = f"# A\n\n{WORDS * 6}\n\n# B\n\n```\n{code}\n```\n\n# C\n\n{WORDS * 6}"
    pieces = split(tokenizer, text, 64, overlap=20)
    shared = [
        text[second.start_char : first.end_char]
        for first, second in itertools.pairwise(pieces)
        if second.start_char < first.end_char
    ]
    assert shared and all(part.strip().startswith("The quick") for part in shared)
    assert all(0 < tokens(tokenizer, part) <= 20 for part in shared)


def test_what_stands_before_a_text_is_part_of_its_chunk_and_of_no_offset(tokenizer: Any) -> None:
    rows = "\n".join(f"| q{n} | {n} |" for n in range(40))
    text = f"# Queues\n\n## Audit\n\n| queue | limit |\n|---|---|\n{rows}"
    chunk = chunks_of(tokenizer, text, "Queues of the service")[-1]
    assert chunk.headings == ("Audit",)  # the title says the first one
    assert chunk.lead == "# Queues of the service\n## Audit\n| queue | limit |\n|---|---|\n"
    assert searched_text(chunk).split("\n")[:2] == ["Queues of the service", "Audit"]
    assert text[chunk.start_char : chunk.end_char] == chunk.text


def test_the_same_text_under_other_headings_is_another_chunk(tokenizer: Any) -> None:
    def last(heading: str) -> Chunk:
        text = f"# T\n\n## {heading}\n\n{WORDS * 8}"
        return chunks_of(tokenizer, text, "T", 24)[-1]

    one, other, again = last("One"), last("Two"), last("One")
    assert one.text == other.text and one.token_ids == other.token_ids
    assert one.chunk_id != other.chunk_id and one.chunk_id == again.chunk_id


def test_a_title_that_a_text_opens_with_is_searched_once(tokenizer: Any) -> None:
    (chunk,) = chunks_of(tokenizer, "# Pools\n\nWords.", "Pools")
    assert searched_text(chunk) == "# Pools\n\nWords."


def test_no_heading_makes_a_lead_without_end(tokenizer: Any) -> None:
    text = f"# {'long ' * 500}\n\n{WORDS * 9}"
    assert all(len(path) <= 101 for p in split(tokenizer, text) for path in p.headings)
