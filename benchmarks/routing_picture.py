"""The picture of a routing benchmark as SVG: goodput and mean quality against load, one line for each side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 15, 40, 45
COLOURS = ("#1b6ca8", "#c8553d", "#5b8c5a")


class Point(Protocol):
    """What is drawn of a step."""

    side: str
    load: float
    goodput: float
    quality: float


def picture(steps: Sequence[Point]) -> str:
    """Draws two panels side by side."""
    panels = [
        _panel(steps, "Answers in time, per second", lambda step: step.goodput, "{:.0f}", from_zero=True),
        _panel(steps, "Mean quality of these answers", lambda step: step.quality, "{:.3f}"),
    ]
    body = "".join(f'<g transform="translate({number * WIDTH},0)">{panel}</g>' for number, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def _panel(
    steps: Sequence[Point], title: str, value: Callable[[Point], float], form: str, from_zero: bool = False
) -> str:
    loads, values = [step.load for step in steps], [value(step) for step in steps]
    low, high = 0.0 if from_zero else min(values), max(values)
    span = (high - low) or 1.0

    def x(load: float) -> float:
        return LEFT + (load - min(loads)) / ((max(loads) - min(loads)) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(level: float) -> float:
        return HEIGHT - BOTTOM - (level - low) / span * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="18" font-size="13">{title}</text>']
    for level in [low + span * part / 4 for part in range(5)]:
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{form.format(level)}</text>')
    parts += [
        f'<text x="{x(load):.1f}" y="{HEIGHT - 28}" text-anchor="middle">{load:.0%}</text>'
        for load in sorted(set(loads))
    ]
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 10}" text-anchor="middle">load, of the best variant</text>'
    )
    for number, side in enumerate(dict.fromkeys(step.side for step in steps)):
        drawn = [(x(step.load), y(value(step))) for step in steps if step.side == side]
        line = " ".join(f"{across:.1f},{down:.1f}" for across, down in drawn)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in drawn]
        parts.append(f'<text x="{LEFT + 80 * number}" y="33" fill="{colour}">{side}</text>')
    return "".join(parts)
