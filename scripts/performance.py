"""Write the table of measured ratios into BUILD.md, from what benchmarks recorded: python scripts/performance.py."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
BUILD_MD, RESULTS = ROOT / "BUILD.md", ROOT / "benchmarks" / "results"
RIVALS = {"torch": "PyTorch", "torch_compiled": "`torch.compile`", "flax": "Flax"}
Row = tuple[str, str, str]  # what, measured, goal


def ratios_of(one: dict[str, Any]) -> str:
    """By the clock, and in brackets by the processor."""
    return f"{one['ratio']:.2f} ({one['processor_ratio']:.2f})"


def attention(found: dict[str, Any]) -> Iterator[Row]:
    """The package's best driver beside that of JAX, under the causal mask."""
    for mode, told in (("forward", "forwards"), ("train", "with gradients")):
        times = [f"{rival / ours:.2f} ({n})" for n, rival, ours in beside_jax(found, mode, "milliseconds")]
        yield f"causal attention {told}: `jax.nn` over our fastest driver, by length", ", ".join(times), "-"
        sizes = [
            f"{rival / ours:.1f} ({n}, {ours / 2**20:.1f} MiB)" for n, rival, ours in beside_jax(found, mode, "memory")
        ]
        yield f"causal attention {told}: temporary memory of `jax.nn` over our smallest driver's", ", ".join(sizes), "-"


def beside_jax(found: dict[str, Any], mode: str, field: str) -> Iterator[tuple[int, float, float]]:
    """By length, what `jax.nn` takes and the least that a driver of ours does, where both were measured."""
    for length in found["given"]["lengths"]:
        rows = [r for r in found["attentions"] if (r["mask"], r["length"], r["mode"]) == ("causal", length, mode)]
        taken = {row["impl"]: row[field] for row in rows if row.get(field)}
        ours = [value for name, value in taken.items() if name.startswith("xla")]
        if "jax_nn_xla" in taken and ours:
            yield length, taken["jax_nn_xla"], min(ours)


def recurrences(found: dict[str, Any]) -> Iterator[Row]:
    """The baseline's time and memory at the longest length, and what other drivers and libraries take beside it."""
    baseline, length = found["given"]["baseline"], max(found["given"]["lengths"])
    for mode, told in (("forward", "forwards"), ("train", "with gradients")):
        parts = []
        for kind in found["given"]["kinds"]:
            rows = [r for r in found["recurrences"] if (r["kind"], r["length"], r["mode"]) == (kind, length, mode)]
            ours = next(row for row in rows if row["impl"] == baseline)
            beside = [f"{r['impl']} {ratios_of(r)}" for r in rows if r is not ours and "ratio" in r]
            measured = f"{kind} {ours['milliseconds']:.1f} ms, {ours['memory'] / 2**20:.1f} MiB"
            parts.append(measured + (f" ({'; '.join(beside)})" if beside else ""))
        yield f"recurrences {told}, {length} tokens, `{baseline}` and others' time over its own", "; ".join(parts), "-"


def operators(found: dict[str, Any]) -> Iterator[Row]:
    """Slopes of recurrences."""
    for mode, told in (("forward", "forwards"), ("train", "with gradients")):
        rows = [row for row in found["operators"] if row["recurrent"] and row["mode"] == mode]
        slopes = {row["operator"]: row["slope_of_milliseconds"] for row in rows if row["slope_of_milliseconds"]}
        above = [f"`{name}` {slope:.2f}" for name, slope in slopes.items() if slope > found["goal"]]
        behind = f"; above the goal: {', '.join(above)}" if above else ""
        measured = f"{min(slopes.values()):.2f} to {max(slopes.values()):.2f}{behind}"
        yield f"slope of the time of {len(slopes)} recurrences {told}", measured, f"at most {found['goal']}"
        grows = [row["slope_of_memory"] for row in rows if row["slope_of_memory"]]
        yield (
            f"slope of the temporary memory of {len(grows)} recurrences {told}",
            f"{min(grows):.2f} to {max(grows):.2f}",
            "-",
        )


def samplers(found: dict[str, Any]) -> Iterator[Row]:
    """Shares of a step."""
    above = [f"{name} {one['share']:.1%}" for name, one in found["configs"].items() if one["share"] > found["goal"]]
    behind = f", {len(above)} above the goal: {', '.join(above)}" if above else ""
    yield "drawing batches, as a share of the step", f"{len(found['configs'])} configs{behind}", f"{found['goal']:.0%}"


def startup(found: dict[str, Any]) -> Iterator[Row]:
    """Seconds to the first loss."""
    for kind, goal in found["goals"].items():
        yield f"from the process to its first loss, {kind}", f"{found['seconds'][kind]:.1f} s", f"{goal:.0f} s"
    if "sweep" in found:
        sweep = found["sweep"]
        what = f"a sweep of {sweep['cells']} cells of one shape: programs compiled for a train step"
        more = f"; the first cell {sweep['first']:.1f} s, the others {sweep['others']:.1f} s each"
        yield what, f"{sweep['steps_compiled']}{more}", "1"


def host_cost(found: dict[str, Any]) -> Iterator[Row]:
    """Of a step."""
    yield "processor time of the host a step", f"{found['milliseconds_a_step']['host']:.3f} ms", f"{found['goal']} ms"


def sweep_scale(found: dict[str, Any]) -> Iterator[Row]:
    """The longest stage."""
    longest = max((one for one in found["stages"] if "seconds" in one), key=lambda one: one["seconds"])
    what = f"a sweep of {found['cells']:,} cells that train nothing, the longest stage"
    yield what, f"{longest['seconds']:.0f} s ({longest['stage']})", "600 s"


def train_throughput_cpu(found: dict[str, Any]) -> Iterator[Row]:
    """Ratios to each rival."""
    for row in found["shapes"]:
        ours, *others = row["loops"]
        if "milliseconds" not in ours:
            continue
        ratios = [f"{RIVALS[one['impl']]} {ratios_of(one)}" for one in others if "ratio" in one]
        shape = f"({row['batch']}, {row['length']}, {row['width']})"
        goal = "-" if row["goal"] is None else f"{row['goal']} of the best"
        told = f"{ours['milliseconds']:.1f} ms ({ours['processor']:.1f}); {', '.join(ratios)}"
        yield f"a step of {row['task']} {shape}", told, goal


def replicas_cpu(found: dict[str, Any]) -> Iterator[Row]:
    """Ratios of runs to one program."""
    for row in found["programs"]:
        parts = [
            f"`{one['impl']}`{' (chosen)' if one['auto'] else ''} {ratios_of(one)}, {one['memory'] / 2**20:.1f} MiB"
            for one in row["rows"][1:]
            if "ratio" in one
        ]
        goal = "-" if row["goal"] is None else f"{row['goal']} of what is chosen"
        yield f"runs over one program, R = {row['replicas']}", "; ".join(parts), goal


def analysis_cpu(found: dict[str, Any]) -> Iterator[Row]:
    """What recording costs, and patching by loops."""
    for one in found["record"]:
        if one["impl"] != "forward" and "ratio" in one:
            what = f"recording {one['impl']} over a plain forward pass, {one['length']} tokens"
            yield what, ratios_of(one), "-"
    for length in dict.fromkeys(one["length"] for one in found["patching"]):
        rows = [one for one in found["patching"] if one["length"] == length and "ratio" in one]
        parts = [f"{one['impl']} {ratios_of(one)}" for one in rows if one["impl"] != "map"]
        yield f"{rows[0]['patches']} patches over one mapped program, {length} tokens", ", ".join(parts), "-"


TABLES: tuple[tuple[str, Callable[[dict[str, Any]], Iterator[Row]]], ...] = (
    ("train_throughput", train_throughput_cpu),
    ("replicas", replicas_cpu),
    ("startup", startup),
    ("host_cost", host_cost),
    ("samplers", samplers),
    ("attention", attention),
    ("recurrences", recurrences),
    ("operators", operators),
    ("analysis", analysis_cpu),
    ("sweep_scale", sweep_scale),
)


def page() -> str:
    """The table, and the machines it was recorded on."""
    lines = ["| what | measured | goal | machine | command |", "|---|---|---|---|---|"]
    machines: list[str] = []
    for name, rows in TABLES:
        path = next((p for p in (RESULTS / f"{name}.json", RESULTS / f"{name}_cpu.json") if p.exists()), None)
        if path is None:
            lines.append(f"| all of it | not recorded yet | - | - | `python benchmarks/{name}.py` |")
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        command = f"`{'taskset -c 0 ' if found['cores'] == 1 else ''}python benchmarks/{name}.py`"
        cores = f"{found['cores']} core{'' if found['cores'] == 1 else 's'}"
        machine = f"{cores}, {found['processor']}, jax {found['versions']['jax']}"
        if machine not in machines:
            machines.append(machine)
        where = f"{machines.index(machine) + 1}, {found['date'][:10]}, load {found['load']}"
        lines += [f"| {what} | {measured} | {goal} | {where} | {command} |" for what, measured, goal in rows(found)]
    lines += ["", "Machines: " + "; ".join(f"{i}. {machine}" for i, machine in enumerate(machines, 1)) + "."]
    return "\n".join(lines)


def written(text: str) -> str:
    """`text` with what stands between the marks made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{page()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    BUILD_MD.write_text(written(BUILD_MD.read_text(encoding="utf-8")), encoding="utf-8")
