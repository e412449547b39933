"""The HTML layer: everything from outside is text, views switch without scripts."""

from hypothesis import given
from hypothesis import strategies as st

from hemstitch.report import Html, element, escape, join, page, section, table, tabs

HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&\x00\ud800"


@given(st.text())
def test_text_comes_back_as_it_was(parse, text):
    visible = text.translate({code: "\ufffd" for code in [*range(9), 11, 12, *range(13, 32), *range(127, 160)]})
    assert parse(element("p", text)).text == visible
    assert parse(element("p", title=text)).values("title") == [visible]


def test_only_markup_stays_markup():
    assert element("b", Html("<i>x</i>"), "<i>", None) == "<b><i>x</i>&lt;i&gt;</b>"
    assert join(["<", Html("<hr>")]) == "&lt;<hr>"
    assert escape(3) == "3"


def test_attributes():
    assert element("input", checked=True, disabled=False, aria_label='"', for_=None) == (
        '<input checked aria-label="&quot;">'
    )


def test_page_is_balanced_and_self_contained_whatever_is_in_it(parse):
    views = {HOSTILE: table([HOSTILE], [[HOSTILE], [3]], numeric=[0]), "other": HOSTILE}
    parsed = parse(page(HOSTILE, section(HOSTILE, tabs(HOSTILE, views)), subtitle=HOSTILE))
    parsed.assert_self_contained()
    assert parsed.text.count("<script>") == 9
    assert page(HOSTILE).encode("utf-8")


def test_tabs_open_the_first_and_need_a_choice(parse):
    switch = parse(tabs("axis", {"steps": "a", "time": "b"}))
    assert switch.values("type") == ["radio", "radio"]
    assert [name for name, _ in switch.attributes].count("checked") == 1
    assert switch.values("for") == switch.values("id")
    assert tabs("axis", {"steps": "a"}) == "a"


def test_empty_section_vanishes():
    assert section("Events", None, Html()) == ""
