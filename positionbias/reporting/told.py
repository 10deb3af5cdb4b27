"""What reports call things, and numbers as they tell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from positionbias.reporting.html import between, number
from positionbias.spec import ConfigError, build, canonical

COLLINEAR = (
    "At this fixed length the query always comes last, so evidence position and distance are the same variable here:"
    " 'early' and 'far' cannot be told apart. Padding in front of the context would separate them."
)


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


def shortened(text: str, axis: str = "tasks") -> str:
    """A spec without the arguments that have their defaults; as it is where no such member can be built."""
    try:
        return canonical(build(axis, text, axis))
    except ConfigError:
        return text
