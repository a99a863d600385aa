"""HTML: what is filled into a page's fields is part of its text."""

from __future__ import annotations

import pytest

from chunkcache.retrieval.html_reader import read_html


def text(body: str) -> str:
    found = read_html(f"<html><body><h1>Order</h1>{body}</body></html>").text
    return found.removeprefix("# Order").strip()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("<p>Name<input value='Ada Byron'>!</p>", "Name Ada Byron !"),
        ("<p>Day: <input type=DATE value=2024-05-01></p>", "Day: 2024-05-01"),
        ("<p>In <select><option>Rome<option selected>Bari</select></p>", "In Bari"),
        ("<p>In <select multiple><option selected>A<option>B<option selected>C</select></p>",
         "In A, C"),
        ("<p>Says</p><textarea>hello\n you</textarea>", "Says\n\nhello you"),
        ("<p><label><input type=checkbox checked> agrees</label></p>", "[x] agrees"),
        ("<ul><li><input type=checkbox disabled checked> done</li>"
         "<li><input type=checkbox disabled> open</li></ul>", "- [x] done\n- [ ] open"),
        ("<table><tr><th>k<th>v<tr><td>size<td><input value=42></table>",
         "| k | v |\n| --- | --- |\n| size | 42 |"),
        ("<details><summary>More</summary><p>folded</p></details>", "More\n\nfolded"),
    ],
)  # fmt: skip
def test_values_stand_in_the_text(body: str, says: str) -> None:
    assert text(body) == says


@pytest.mark.parametrize(
    "body",
    [
        "<input type=password value=unseen>", "<input type=hidden value=unseen>",
        "<input hidden value=unseen>", "<input type=submit value=unseen>",
        "<input type=search value=unseen>", "<select><option>unseen</select>",
        "<div><input type=radio checked><label>seen</label></div>",
        "<label><input type=checkbox></label>", "<template><p>unseen</p></template>",
        "<noscript>unseen</noscript>", "<div hidden><input value=unseen></div>",
        "<nav><input value=unseen></nav>", "<button>unseen</button>",
    ],
)  # fmt: skip
def test_controls_without_a_value_for_readers_say_nothing(body: str) -> None:
    found = text(f"<p>seen</p>{body}")
    assert "unseen" not in found and "[" not in found and "seen" in found


def test_options_and_values_do_not_choose_the_article() -> None:
    """What fills a form beside an article is no reason to take the whole page."""
    long = "<select>" + "<option>word word word" * 50 + "</select>"
    body = f"<div>{long}</div><article><h2>The piece</h2><p>Its only words.</p></article>"
    page = read_html(f"<html><body>{body}<p>Imprint</p></body></html>")
    assert page.text == "## The piece\n\nIts only words."
