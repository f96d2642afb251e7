"""Objects show themselves in a notebook: a table of facts, in which nothing of a file is markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from sharpscope.card import card


def rows(html: str) -> dict[str, str]:
    """{fact: value} of a card, which has to be well-formed."""
    stack, texts = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

        def handle_data(self, data: str) -> None:
            texts.append((stack[-1], data))

    Reader().feed(html)
    assert not stack and texts[0][0] == "caption"
    names = [text for tag, text in texts if tag == "th"]
    return dict(zip(names, [text for tag, text in texts if tag == "td"], strict=True))


def test_facts_are_written_for_people_and_markup_comes_out_as_text() -> None:
    evil = "<script>alert(1)</script>\x1b[31m"
    found = rows(card(evil, {"n": 1234567, "x": 0.123456, "ok": True, "no": False, "left out": None, evil: evil}))
    assert found["n"] == "1,234,567" and found["x"] == "0.1235" and (found["ok"], found["no"]) == ("yes", "no")
    assert "left out" not in found and len(found) == 5
    assert found["<script>alert(1)</script>\\x1b[31m"] == "<script>alert(1)</script>\\x1b[31m"
    assert "<script" not in card(evil, {evil: evil})


def test_what_a_notebook_makes_shows_itself() -> None:
    import sharpscope

    pair = sharpscope.load_pair("mini:zeroshot", "mini:success", model="mini")
    data = sharpscope.load_dataset("mini:photo", model=pair.model, split="train")
    probe = sharpscope.Probe(pair.classifier, data, size=8)
    told = (
        (pair, {"pair": "success", "classes": "16"}),
        (pair.path(), {"dtype": "float32"}),
        (data, {"images": f"{len(data):,}", "split": "train"}),
        (probe, {"examples": "8", "data set": data.name}),
    )
    for thing, facts in told:
        assert facts.items() <= rows(thing._repr_html_()).items(), thing
    trace = sharpscope.TraceEstimate(2.5, 0.5, True, 7)
    assert rows(trace._repr_html_()) == {"trace": "2.5", "standard error": "0.5", "converged": "yes", "products": "7"}
    value = sharpscope.EigenEstimate(1.0, 0.25, False, 3)
    assert rows(value._repr_html_())["residual"] == "0.25" and rows(value._repr_html_())["converged"] == "no"
    rise = sharpscope.SharpnessEstimate(0.5, float("nan"), True, 4)
    assert "standard error" not in rows(rise._repr_html_()) and re.search("evaluations", rise._repr_html_())
