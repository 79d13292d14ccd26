"""A model card becomes a page without a letter of it being run."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from model.artifact import CARD, shipped_artifact
from producer.markdown import render

TAGS = {
    *("h3", "h4", "h5", "h6", "p", "ul", "li", "strong", "code"),
    *("div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span"),
}


class Reader(HTMLParser):
    """Notes tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(
    st.lists(st.sampled_from(["# ", "## ", "|", "| --- |", "* ", "`", "**", "\n", "<b onclick=x>", "&", '"', "a b"]))
)
def test_whatever_a_card_says_only_harmless_elements_come_of_it(pieces: list[str]) -> None:
    found = Reader(render("".join(pieces)))

    assert set(found.tags) <= TAGS
    kinds = {("class", kind) for kind in ("scroll", "number", "interval")}
    assert found.attributes <= kinds | {("scope", "col"), ("scope", "row")}
    assert found.text.count("onclick") >= "".join(pieces).count("onclick")


def test_the_shipped_models_card_keeps_its_headings_tables_and_emphasis() -> None:
    text = (shipped_artifact() / CARD).read_text(encoding="utf-8")

    made = render(text)
    found = Reader(made)

    assert found.tags.count("h3") == 1
    assert found.tags.count("h4") == text.count("\n## ")
    assert found.tags.count("table") == sum(line.startswith("| ---") for line in text.splitlines()) > 5
    assert "<strong>Not a medical device.</strong>" in made
    assert "<code>diagnosis</code> is the argmax" in made
    assert not any(mark in found.text for mark in ("**", "| ---", "`"))


def test_a_table_without_a_head_a_list_and_a_lone_heading_are_shown() -> None:
    made = render("#### deep\n* one\n* <two>\n| a | 1 |\nlast")

    assert made.startswith("<h6>deep</h6>\n<ul><li>one</li><li>&lt;two&gt;</li></ul>")
    assert '<th scope="row">a</th><td class="number">1</td>' in made
    assert made.endswith("<p>last</p>")
