"""What reports call things, and numbers as they tell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from positionbias.reporting.html import between, escape, grid, number
from positionbias.spec import ConfigError, build, canonical

COLLINEAR = (
    "At this fixed length the query always comes last, so evidence position and distance are the same variable here:"
    " 'early' and 'far' cannot be told apart. Padding in front of the context would separate them."
)
ASKS = (
    "The token that asks can have many times an even share, as the query is made of it, and a residual, where there is"
    " one, hands it on. If it is the last, a peak at it alone is no recency bias, although recency and tilt count it."
)
INDICES_TOLD = (
    "Primacy: first quarter minus middle; recency: last quarter minus middle; tilt: first minus last; middle dip:"
    " the smaller of primacy and recency."
)
NO_INDICES = "fewer than three positions are known, and indices compare the first, the middle and the last"


def loss_told(measured: Mapping[str, Any]) -> str:
    """The mean loss, and the least that can be expected where that is known."""
    loss = measured["loss"]
    return between(loss) + (f" (floor {number(loss['floor'])})" if loss["floor"] is not None else "")


def ceiling_told(mean: float | None, known: float) -> str:
    """A ceiling, with the share of answers of which it is known and that it is the mean of, if that is not all."""
    return number(mean) + (f" ({min(known, 0.999):.1%} known)" if 0 < known < 1 else "")


def replicas_text(count: int) -> str:
    """`1 replica`, `4 replicas`."""
    return f"{count} replica" + ("" if count == 1 else "s")


def label(summary: Mapping[str, Any], axis: str) -> str:
    """What `query` or `evidence` slots count."""
    return str(summary.get("axes", {}).get(axis) or f"{axis} position")


def band(count: int) -> str:
    """What the band around a curve is."""
    if count < 2:
        return "One replica: no interval."
    return f"Band: 95 % Student t over replicas, n = {count}."


def indices(head: Sequence[str], body: Sequence[Sequence[str]], caption: str, texts: int = 1, raw: int = 0) -> str:
    """A table of indices, of which the first `texts` columns are no numbers; where there are no numbers the reason."""
    without = [all(cell == "–" for cell in row[texts:]) for row in body]
    if all(without):
        return f'<p class="caption">{escape(f"{caption} None: {NO_INDICES}.")}</p>'
    told = f"{caption} {INDICES_TOLD} Mean and 95 % interval over replicas."
    return grid(head, body, told + (f" –: {NO_INDICES}." if any(without) else ""), texts=texts, raw=raw)


def shortened(text: str, axis: str = "tasks") -> str:
    """A spec without the arguments that have their defaults; as it is where no such member can be built."""
    try:
        return canonical(build(axis, text, axis))
    except ConfigError:
        return text
