"""Pages: whatever comes from an archive is escaped, and numbers are told from words."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from producer.pages import POLICY, Markup, element, escape, histogram, page, table


class Reader(HTMLParser):
    """Notes tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.attributes: dict[str, str | None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_in_an_element_or_its_attributes_stays_text(text: str) -> None:
    made = element("p", text, title=text.encode("utf-8", "replace").decode())
    made.encode("utf-8")
    found = read(made)

    assert found.tags == ["p"]
    plain = text.encode("utf-8", "backslashreplace").decode()
    assert found.text == "".join(letter if letter.isprintable() else "\ufffd" for letter in plain)


def test_a_quote_does_not_end_an_attribute() -> None:
    found = read(element("p", "x", title='"><b onclick="alert(1)">'))

    assert (found.tags, found.attributes) == (["p"], {"title": '"><b onclick="alert(1)">'})


def test_a_picture_has_no_end() -> None:
    assert element("img", alt="<") == '<img alt="&lt;">'


def test_html_that_was_made_here_is_not_escaped_again() -> None:
    assert element("p", element("b", "<")) == "<p><b>&lt;</b></p>"
    assert escape(Markup("<hr>")) == "<hr>"


def test_numbers_are_set_to_the_right_and_words_are_not() -> None:
    rows = [("x", 12345, "4.4 (2 to 7)", "+0.1 (-0.2 to +0.4)", "7.9% (1.0% to 9%)", "2 images", "undefined")]
    made = table("t", "abcdefg", [*rows, ("y", 1, "undefined", "-3", "2%", "3", "4")])

    assert made.count('<td class="number"') == 5 + 6
    assert ">12,345<" in made
    # A column's head stands where all of its numbers do, and an interval goes to the next line as a whole
    heads = made[: made.index("</thead>")].split("<th ")[1:]
    assert ['class="number"' in head for head in heads] == [False, True, True, True, True, False, True]
    assert '>4.4 <span class="interval">(2 to 7)</span><' in made


def test_a_histogram_says_its_figures_in_words_too() -> None:
    made = histogram("Score", [0, 1, 1000], mark=0.5, said="here")

    heights = [float(part.split('"')[0]) for part in made.split(' height="')[1:]]
    assert heights[0] == 0 < heights[1] < heights[2]
    assert '<td class="number">1,000</td>' in made
    assert 'role="img"' in made


def test_a_page_states_its_policy_and_has_no_script_or_style_of_its_own() -> None:
    made = page("<title>", element("p", "x"), scripts=("a.js",))
    found = read(made)

    assert found.attributes["content"] == "noindex"
    assert POLICY in made.replace("&#x27;", "'")
    assert "unsafe" not in POLICY
    assert made.count("<script") == made.count('<script src="a.js" defer></script>') == 1
    assert "<style" not in made
    assert "http" not in made.replace("http-equiv", "")
