"""Draws the variants of a model as an SVG picture: quality against time, and quality against size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

WIDTH, HEIGHT, GAP = 460, 320, 40
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 36, 48
COLOURS = {True: "#1b7f4b", False: "#b3431e"}
"""Of published and of refused variants."""


@dataclass(frozen=True)
class Mark:
    """One variant.

    Attributes:
        name: written beside it.
        milliseconds: of one text.
        megabytes: of its weights.
        value, low, high: quality, with the ends of its 95 % interval.
        published: refused ones are drawn hollow.
    """

    name: str
    milliseconds: float
    megabytes: float
    value: float
    low: float
    high: float
    published: bool


def draw(marks: Sequence[Mark], metric: str) -> str:
    """An SVG picture of both comparisons, side by side; text, self-contained."""
    width = 2 * WIDTH + GAP
    root = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {HEIGHT}",
        width=str(width),
        height=str(HEIGHT),
        role="img",
    )
    root.set("font-family", "sans-serif")
    root.set("font-size", "12")
    ElementTree.SubElement(root, "rect", width=str(width), height=str(HEIGHT), fill="white")
    _panel(root, 0, marks, [mark.milliseconds for mark in marks], f"{metric} against time", "ms for one text")
    _panel(root, WIDTH + GAP, marks, [mark.megabytes for mark in marks], f"{metric} against size", "MB of weights")
    return ElementTree.tostring(root, "unicode")


def _panel(
    root: ElementTree.Element, offset: int, marks: Sequence[Mark], xs: Sequence[float], title: str, unit: str
) -> None:
    group = ElementTree.SubElement(root, "g", transform=f"translate({offset} 0)")
    _text(group, LEFT, TOP - 16, title, weight="bold")
    _text(group, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, unit, anchor="middle")
    right = 1.15 * max(xs)
    low = min(mark.low for mark in marks)
    high = max(mark.high for mark in marks)
    room = 0.08 * (high - low) or 0.01
    low, high = low - room, min(high + room, 1.0 + room)

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / right

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    for step in range(6):
        x, y = right * step / 5, low + (high - low) * step / 5
        _line(group, across(x), up(low), across(x), up(high), "#e4e4e4")
        _text(group, across(x), HEIGHT - BOTTOM + 16, f"{x:.3g}", anchor="middle")
        _line(group, across(0), up(y), across(right), up(y), "#e4e4e4")
        _text(group, LEFT - 6, up(y) + 4, f"{y:.3f}", anchor="end")
    _front(group, [(across(x), up(m.value)) for x, m in zip(xs, marks, strict=True) if m.published])
    for x, mark in zip(xs, marks, strict=True):
        colour = COLOURS[mark.published]
        _line(group, across(x), up(mark.low), across(x), up(mark.high), colour)
        point = ElementTree.SubElement(group, "circle", cx=f"{across(x):.1f}", cy=f"{up(mark.value):.1f}", r="4.5")
        point.set("stroke", colour)
        point.set("fill", colour if mark.published else "white")
        beyond = across(x) > 0.75 * WIDTH
        _text(group, across(x) + (-8 if beyond else 8), up(mark.value) - 6, mark.name, "end" if beyond else "start")


def _front(group: ElementTree.Element, points: Sequence[tuple[float, float]]) -> None:
    """Joins the points that no other one is both left of and above."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:  # SVG counts downwards
            best.append((x, y))
    path = ElementTree.SubElement(group, "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in best))
    path.set("fill", "none")
    path.set("stroke", COLOURS[True])
    path.set("stroke-dasharray", "4 3")


def _line(group: ElementTree.Element, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ElementTree.SubElement(group, "line", {name: f"{value:.1f}" for name, value in ends.items()}, stroke=colour)


def _text(
    group: ElementTree.Element, x: float, y: float, text: str, anchor: str = "start", weight: str = "normal"
) -> None:
    element = ElementTree.SubElement(group, "text", x=f"{x:.1f}", y=f"{y:.1f}")
    element.set("text-anchor", anchor)
    element.set("font-weight", weight)
    element.text = text
