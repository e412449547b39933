"""HTML from Python calls, where nothing gets onto a page unescaped by accident.

:func:`element` escapes every child that is not :class:`Html`, and only this module and the plots make :class:`Html`
from a string. A finished :func:`page` is one file: its style is inside, it has no script, and its content security
policy forbids the browser to run or load anything, whatever a transcript or a configuration value may contain.
Switches between views are radio buttons and style rules, so they work from the keyboard, offline and in e-mail.
"""

import html
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from zlib import crc32

from hemstitch import __version__
from hemstitch.report._text import clean

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_EMPTY = frozenset({"input", "meta", "br"})


class Html(str):
    """Text that is markup already. Make it with :func:`element`, not from text that came from outside."""

    __slots__ = ()


def escape(child: object) -> Html:
    """Markup as it is, anything else as visible text; None as nothing."""
    if isinstance(child, Html):
        return child
    return Html("" if child is None else html.escape(clean(child)))


def join(children: Iterable[object]) -> Html:
    """Children one after the other, each escaped unless it is markup."""
    return Html("".join(map(escape, children)))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """One element, children and attribute values escaped.

    Args:
        tag: Element name.
        children: Markup, text, or None (left out).
        attributes: Underscores become hyphens and a trailing one is dropped (`class_`, `aria_label`); True gives an
            attribute without value, None and False leave it out.
    """
    shown = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(clean(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{shown}>" + ("" if tag in _EMPTY else f"{join(children)}</{tag}>"))


def section(title: str, *children: object) -> Html:
    """A titled part of the page, or nothing where all children are empty."""
    body = join(children)
    return element("section", element("h2", title), body) if body else body


def note(*children: object, level: str = "info") -> Html:
    """A framed remark; level is info, warning or error."""
    return element("div", *children, class_=f"note {level}")


def details(summary: object, *children: object) -> Html:
    """Children folded away behind a line that opens them."""
    return element("details", element("summary", summary), *children)


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Collection[int] = (),
    marked: Collection[int] = (),
) -> Html:
    """A table that scrolls sideways on its own on a narrow screen.

    Args:
        header: Column titles.
        rows: One sequence of cells a row, the first cell of each is its heading.
        numeric: Columns set flush right with figures of equal width.
        marked: Rows set off from the others.
    """

    def cell(tag: str, column: int, content: object, **attributes: object) -> Html:
        return element(tag, content, class_="number" if column in numeric else None, **attributes)

    head = element("tr", *(cell("th", i, title, scope="col") for i, title in enumerate(header)))
    body = [
        element(
            "tr",
            *(cell("td" if i else "th", i, content, scope=None if i else "row") for i, content in enumerate(row)),
            class_="marked" if k in marked else None,
        )
        for k, row in enumerate(rows)
    ]
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex=0)


def cards(entries: Iterable[tuple[str, object, object]], *, leading: bool = False) -> Html:
    """The figures one looks for first, (what, value, remark) each; leading ones are larger."""
    return element(
        "dl",
        *(
            element("div", element("dt", what), element("dd", value), element("dd", remark, class_="remark"))
            for what, value, remark in entries
        ),
        class_="cards leading" if leading else "cards",
    )


def tabs(name: str, panels: Mapping[str, object]) -> Html:
    """One of several views (at most eight), chosen by radio buttons; a single view is shown without a switch.

    Args:
        name: What the switch chooses, unique on the page.
        panels: Title to content; the first is open.
    """
    if len(panels) < 2:
        return join(panels.values())
    group = f"tabs-{crc32(clean(name).encode()):08x}"
    buttons = [
        join(
            (
                element("input", type="radio", name=group, id=f"{group}-{i}", checked=i == 0),
                element("label", title, for_=f"{group}-{i}"),
            )
        )
        for i, title in enumerate(panels)
    ]
    views = [element("div", content, class_="panel") for content in panels.values()]
    return element("div", element("span", name, class_="switch"), *buttons, *views, class_="tabs")


def columns(*children: object) -> Html:
    """Side by side where the page is wide enough, below each other where it is not; empty ones left out."""
    filled = (escape(child) for child in children if child)
    return element("div", *(element("div", child) for child in filled), class_="columns")


def swatch(color: int) -> Html:
    """A dot in the colour of the plots' series of that number; a ring from 8 on, where lines become dashed."""
    return element("i", class_="swatch" if color < 8 else "swatch ring", style=f"--color:var(--series-{color % 8})")


def share_bar(share: float) -> Html:
    """A bar across its cell, filled to the share (0 to 1)."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return element("div", element("div", style=f"width:{filled:.1f}%"), class_="bar", aria_hidden="true")


def page(title: str, *children: object, subtitle: object = None) -> Html:
    """A complete, self-contained document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", _style()),
    )
    header = element("header", element("h1", title), element("p", subtitle) if subtitle else None)
    footer = element("footer", f"Written by Hemstitch {__version__}")
    body = element("body", header, element("main", *children), footer)
    return Html("<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n")


@cache
def _style() -> Html:
    return Html((resources.files("hemstitch.report") / "page.css").read_text(encoding="utf-8"))
