"""Pieces of HTML that several parts of the page are made of. Cells and captions are HTML: the callers escape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NUM_COLOURS = 10  # --c0 ... --c9 in assets/report.css


def colour(index: int) -> str:
    """The swatch of run number `index`."""
    return f'<i class="swatch" style="--c:var(--c{index % NUM_COLOURS})"></i>'


def table(kind: str, head: Sequence[str], rows: Iterable[str], *, caption: str = "") -> str:
    """A table of class `kind` that scrolls sideways where the page is narrow; `rows` are the insides of its rows."""
    titles = "".join(f"<th scope=col>{title}</th>" for title in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        (f'<p class="caption">{caption}</p>' if caption else "")
        + f'<div class="scroll" tabindex="0"><table class="{kind}">'
        + f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def bar(label: str, parts: Iterable[tuple[str, str, float]]) -> str:
    """A bar whose parts `(name, class, share)` add up to 1; small ones have no room for their share."""
    parts = [(name, kind, share) for name, kind, share in parts if share > 0]
    spoken = ", ".join(f"{name} {share:.1%}" for name, _, share in parts)
    shown = "".join(
        f'<i class="{kind}" style="flex-grow:{share:.5f}" title="{name}: {share:.1%}">'
        + (f"<span>{share:.0%}</span></i>" if share >= 0.06 else "</i>")
        for name, kind, share in parts
    )
    return f'<p>{label}</p><div class="bar" role="img" aria-label="{spoken}">{shown}</div>'
