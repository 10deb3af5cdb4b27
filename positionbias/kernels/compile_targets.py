"""Compiles every driver of a kernel for chips that are not there, and prints what came of it.

    python -m positionbias.kernels.compile_targets [--target v5e,h200] [--driver mosaic_tpu] [--case dropout]

`scripts/compile_targets.sh` makes the environment that this needs: the compilers of TPUs and of GPUs come with wheels,
and variables tell them that no chip is here. The table has a row a case and a column a chip. A cell tells how many
programs were compiled, one for each type and head size, in how many seconds, and the most that one kernel takes of
what is scarce: bytes of vector memory on a TPU, registers a thread on a GPU. It ends with 1 if a program was not
compiled, or a kernel keeps registers in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import importlib.metadata
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

import jax
import numpy as np

from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.errors import unknown
from positionbias.kernels.compile_cases import CASES as ATTENTIONS
from positionbias.kernels.compile_cases import Case
from positionbias.kernels.recurrence_cases import RECURRENCES, Corrected, Recurrence

WHEELS = ("jax", "libtpu", "jax-cuda13-pjrt")
XLA = ("xla_dense", "xla_chunked")
# What XLA compiles has no tiles to go wrong in.
XLA_CASES = ("gradient", "all statistics", "rule on scores", "recurrence of key channels", "delta rule")
AnyCase = Case | Recurrence | Corrected
CASES: Sequence[AnyCase] = (*ATTENTIONS, *RECURRENCES)
PATIENCE = 300  # seconds for one program; the search for layouts of a GPU kernel can go on for ever
# What the compiler must know of an H200, in the format of XLA.
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 4916736000000
  device_memory_size: 150754820096
  l2_cache_size: 62914560
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
}
platform_name: "CUDA"
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of chip; `topology` is what makes a description of one."""

    name: str
    platform: str  # as drivers call it
    topology: dict[str, Any]
    fused: str  # the driver that is for it
    dtypes: tuple[str, ...]
    heads: tuple[int, ...]

    @property
    def drivers(self) -> tuple[str, ...]:
        """Those to compile."""
        return (self.fused, *XLA)


def _tpu(name: str, topology: str) -> Target:
    told = {"platform": "tpu", "topology_name": topology}
    return Target(name, "tpu", told, "mosaic_tpu", ("float32", "bfloat16"), (16, 64, 128))


TARGETS: Sequence[Target] = (
    _tpu("v4", "v4:2x2x1"),
    _tpu("v5e", "v5e:2x2"),
    _tpu("v5p", "v5p:2x2x1"),
    _tpu("v6e", "v6e:2x2"),
    _tpu("7x", "tpu7x:2x2x1"),
    Target(
        "h200",
        "gpu",
        {"platform": "cuda", "topology_name": "", "target_config": H200, "topology": "1x1x1"},
        "mosaic_gpu",
        ("bfloat16", "float16"),
        (64, 128),
    ),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of one program; `taken` is the most a kernel takes, None where no kernel says it."""

    seconds: float
    problem: str | None = None
    taken: int | None = None
    spilled: int = 0  # bytes


def vector_memory(hlo: str) -> int | None:
    """Bytes of the kernel that takes most, from the text of a program compiled for a TPU; None if it has no kernel."""
    kernels = [line for line in hlo.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    sizes = [re.search(r'"used_scoped_memory_configs":\[\{"memory_space":"1"[^}]*"size":"(\d+)"', x) for x in kernels]
    return max((int(size[1]) for size in sizes if size), default=None)


def registers(told: str) -> tuple[int | None, int]:
    """Registers a thread of the kernel that takes most, and bytes that all of them spill, from what ptxas prints."""
    used = [int(n) for n in re.findall(r"Used (\d+) registers", told)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", told)]
    return max(used, default=None), sum(spilled)


def short(error: BaseException) -> str:
    """The first line of an error that says something, cut."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


@contextlib.contextmanager
def _overheard() -> Iterator[IO[bytes]]:
    """What is printed meanwhile, by compilers too, goes to a file."""
    with tempfile.TemporaryFile() as told:
        sys.stdout.flush()
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
        try:
            for descriptor in (1, 2):
                os.dup2(told.fileno(), descriptor)
            yield told
        finally:
            sys.stdout.flush()
            for descriptor, old in zip((1, 2), kept, strict=True):
                os.dup2(old, descriptor)
                os.close(old)


def mesh_of(target: Target) -> jax.sharding.Mesh:
    """One chip of the target."""
    from jax.experimental import topologies

    with _overheard():
        found = topologies.get_topology_desc(**target.topology)
    return jax.sharding.Mesh(np.array(found.devices[:1]), ("chip",), axis_types=(jax.sharding.AxisType.Auto,))


def compiled(case: AnyCase, target: Target, mesh: jax.sharding.Mesh, driver: str, dtype: str, head: int) -> Found:
    """Compile one program."""
    there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = case.shapes(dtype, head)
    arguments = [jax.ShapeDtypeStruct(shape, kind, sharding=there) for shape, kind in shapes]
    function = jax.jit(case.function(driver, target.platform))
    start = time.perf_counter()
    faulthandler.dump_traceback_later(PATIENCE, exit=True, file=sys.stderr)
    try:
        # As precise as entries configure it. Kernels ask the mesh which chip they are for.
        with (
            _overheard() as told,
            jax.default_matmul_precision("highest"),
            jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        ):
            platforms = (str(target.topology["platform"]),)
            program = function.trace(*arguments).lower(lowering_platforms=platforms).compile()
            told.seek(0)
            printed = told.read().decode(errors="replace")
    except Exception as error:
        return Found(time.perf_counter() - start, short(error))
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - start
    if driver != target.fused:
        return Found(seconds)
    if target.platform == "tpu":
        taken = vector_memory(program.as_text())
        return Found(seconds, None if taken else "no kernel is in the program", taken)
    taken, spilled = registers(printed)
    spills = f"{spilled} bytes of registers are spilled" if spilled else None
    return Found(seconds, spills if taken else "ptxas tells of no kernel", taken, spilled)


def cell(found: Sequence[Found], platform: str) -> str:
    """What the table says of the programs of one case on one chip."""
    if not found:
        return "-"
    good = sum(x.problem is None for x in found)
    parts = [f"{good} of {len(found)}", f"{sum(x.seconds for x in found):.0f} s"]
    taken = [x.taken for x in found if x.taken is not None]
    if taken:
        parts.append(f"{max(taken) / 2**20:.1f} MiB" if platform == "tpu" else f"{max(taken)} registers")
    spilled = sum(x.spilled for x in found)
    return ", ".join(parts) + (f", {spilled} bytes spilled" if spilled else "")


def table(found: dict[tuple[str, str, str], list[Found]], targets: Sequence[Target]) -> str:
    """The table; `found` by driver, case and target, in the order of rows."""
    lines = [["driver", "case", *(target.name for target in targets)]]
    lines.append(["---"] * len(lines[0]))
    for driver, case in dict.fromkeys(key[:2] for key in found):
        cells = [cell(found.get((driver, case, target.name), []), target.platform) for target in targets]
        lines.append([f"`{driver}`", case, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _chosen(text: str | None, names: Sequence[str], what: str) -> list[str]:
    if text is None:
        return list(names)
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in names:
            raise unknown(f"--{what}", what, name, names)
    return asked


def main(argv: list[str]) -> int:
    """Compile what the command line asks for, all of it unless told; returns the exit code."""
    parser = Parser("python -m positionbias.kernels.compile_targets", str(__doc__).split("\n\n")[0])
    parser.add_argument("--target", help="chips, by commas: " + ", ".join(x.name for x in TARGETS))
    parser.add_argument("--driver", help="drivers, by commas; those that the chips have")
    parser.add_argument("--case", help="cases, by commas: " + ", ".join(case.name for case in CASES))
    told, _ = parse_command_line(parser, argv)
    names = _chosen(told.target, [target.name for target in TARGETS], "target")
    targets = [target for target in TARGETS if target.name in names]
    known = list(dict.fromkeys(driver for target in targets for driver in target.drivers))
    drivers = _chosen(told.driver, known, "driver")
    cases = _chosen(told.case, [case.name for case in CASES], "case")
    meshes = {target.name: mesh_of(target) for target in targets}
    found: dict[tuple[str, str, str], list[Found]] = {}
    bad = 0
    for driver in drivers:
        there = (x for x in CASES if x.name in cases and driver in x.drivers)
        for case in (x for x in there if driver not in XLA or x.name in XLA_CASES):
            for target in (x for x in targets if driver in x.drivers):
                results = found.setdefault((driver, case.name, target.name), [])
                many = driver not in XLA
                dtypes = [dtype for dtype in target.dtypes if case.takes(driver, dtype)]
                for dtype in dtypes if many else dtypes[:1]:
                    for head in target.heads if many else (64,):
                        one = compiled(case, target, meshes[target.name], driver, dtype, head)
                        results.append(one)
                        bad += one.problem is not None
                        if one.problem is not None:
                            which = f"{target.name}: {driver}, {case.name}, {dtype}, heads of {head}"
                            print(f"{which}: {one.problem}", file=sys.stderr, flush=True)
                done = cell(results, target.platform)
                print(f"{target.name}: {driver}, {case.name}: {done}", file=sys.stderr, flush=True)
    wheels = sorted(f"{x.name} {x.version}" for x in importlib.metadata.distributions() if x.name in WHEELS)
    print(f"{', '.join(wheels)}\n\n{table(found, targets)}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    run_entry(main)
