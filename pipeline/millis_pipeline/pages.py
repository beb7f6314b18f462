"""A report as Markdown, and as one HTML page that holds everything."""

from __future__ import annotations

from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """
body { font-family: sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5; color: #222 }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0 }
th, td { border: 1px solid #ccc; padding: 0.25rem 0.6rem; text-align: left }
th { background: #f4f4f4 }
svg { max-width: 100%; height: auto }
"""


def write_pages(folder: Path, name: str, before: str, picture: str, after: str) -> None:
    """Writes one report as `NAME.md` with `NAME.svg` beside it, and as `NAME.html`.

    Args:
        folder: to write into.
        name: logical model name.
        before: Markdown before the picture.
        picture: SVG.
        after: Markdown after it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = f"![Quality against time and size]({name}.svg)\n\n"
    (folder / f"{name}.md").write_text(f"{before}\n{image}{after}\n", "utf-8")
    (folder / f"{name}.svg").write_text(picture, "utf-8")
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = f"{markdown.render(before)}\n{picture}\n{markdown.render(after)}"
    page = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(name)}</title>\n'
    (folder / f"{name}.html").write_text(f"{page}<style>{STYLE}</style>\n<body>\n{body}</body>\n</html>\n", "utf-8")
