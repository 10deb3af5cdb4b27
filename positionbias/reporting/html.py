"""The page around a report: one self-contained file, every text escaped, readable on a phone and in print."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; background: #fff; color: #222;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
p { margin: .5rem 0; max-width: 46rem; }
.under { color: #666; margin: 0; overflow-wrap: anywhere; }
.verdict { font-size: 1.12rem; margin: 1.1rem 0; }
.note { border-left: 4px solid #E69F00; background: #FFF9EC; padding: .5rem .9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.6rem 2rem; }
figure { margin: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: #555; font-size: .88rem; line-height: 1.4; margin-top: .3rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1.4rem; }
details .scroll { margin: .4rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
.caption { color: #555; font-size: .88rem; line-height: 1.4; margin: .5rem 0 0; }
th, td { text-align: left; padding: .22rem .75rem .22rem 0; border-bottom: 1px solid #eee; vertical-align: top; }
th { font-weight: 600; }
thead th { border-bottom: 1px solid #bbb; vertical-align: bottom; }
td:first-child { white-space: nowrap; }
.wrap { min-width: 9rem; overflow-wrap: anywhere; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.plain td:last-child { overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .88rem; }
pre { background: #f6f6f6; padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: #0072B2; }
a { color: #0072B2; }
@media print { body { padding: 0; font-size: 10pt; } h2 { break-after: avoid; }
  .scroll { overflow: visible; } td.number { white-space: normal; } a { color: inherit; } }
"""


def escape(value: Any) -> str:
    """Any value as text that is safe between tags and in attributes."""
    return html.escape(str(value), quote=True)


def page(title: str, body: Sequence[str]) -> str:
    """A whole document; `body` is HTML already."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{CSS}</style>",
            "</head>",
            "<body>",
            *(part for part in body if part),
            "</body>",
            "</html>",
            "",
        ]
    )


def figure(svg: str, caption: str) -> str:
    """One figure and what it shows; `caption` is plain text."""
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def figures(shown: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return '<div class="figures">\n' + "\n".join(shown) + "\n</div>" if shown else ""


def note(text: str) -> str:
    """A remark that must not be overlooked."""
    return f'<p class="note">{escape(text)}</p>'


def grid(
    head: Sequence[str], body: Sequence[Sequence[Any]], caption: str = "", texts: int = 1, raw: int = 0, last: int = 0
) -> str:
    """A table: the first `texts` columns are text, the `last` ones text that wraps, the others numbers.

    The first `raw` columns are HTML already.
    """
    kind = ["" if i < texts else ' class="number"' for i in range(len(head) - last)] + [' class="wrap"'] * last
    top = "".join(f"<th{k}>{escape(h)}</th>" for h, k in zip(head, kind, strict=True))
    shown = [lambda cell: cell] * raw + [escape] * (len(head) - raw - last) + [_breakable] * last
    lines = [
        "<tr>" + "".join(f"<td{kind[i]}>{shown[i](cell)}</td>" for i, cell in enumerate(row)) + "</tr>" for row in body
    ]
    told = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'{told}<div class="scroll">{table}</div>'


def _breakable(cell: Any) -> str:
    """A spec or the name of a file, which may be broken where one of its parts ends."""
    return re.sub(r"([(_])", r"\1<wbr>", escape(cell))


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values; nested ones are named with dots."""
    lines = "".join(f"<tr><th>{escape(k)}</th><td>{escape(_text(v))}</td></tr>" for k, v in flatten(values).items())
    return f'<div class="scroll"><table class="plain"><tbody>{lines}</tbody></table></div>' if lines else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined with dots; an empty one stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: float | None, signed: bool = False) -> str:
    """Three decimals, or a dash for none."""
    if value is None:
        return "–"
    value = round(value, 3) or 0.0  # no minus before a zero
    text = f"{value:+.3f}" if signed and value else f"{value:.3f}"
    return text.replace("-", "−")


def between(row: Mapping[str, Any], signed: bool = False) -> str:
    """`mean [low, high]`, without the brackets where there is no interval."""
    if not row or row.get("mean") is None:
        return "–"
    mean = number(row["mean"], signed)
    return mean if row.get("low") is None else f"{mean} [{number(row['low'], signed)}, {number(row['high'], signed)}]"
