"""What a train step costs the host: processor time of the thread that drives the device, waiting not counted.

    python benchmarks/host_cost.py [--config configs/quickstart.py] [--dispatches 50]

A dispatch is one call of K steps. Timed are the call, until it returns and the device works on alone, and what the loop
does with the metrics once they are ready: fetch, check, average, a line of metrics.jsonl, progress. Medians over
dispatches, divided by K. The batch is one sequence, which changes nothing for the host and keeps the device quick.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import jax
import prepare
import record

from positionbias.training.interval import Interval
from positionbias.training.program import fetch
from positionbias.training.writers import MetricsWriter, Progress

GOAL = 0.05  # ms a step
WARM_UP = 5  # dispatches that are not counted


def measure(config_file: str, dispatches: int) -> dict[str, float]:
    """Milliseconds a step: "call", "metrics", their sum "host", and "call_wall", the call by the clock; and K."""
    compiled = prepare.compiled(config_file, ("train.batch_size", "1"))
    config, size = compiled.program.experiment.config, compiled.program.auto.steps_per_dispatch
    state, interval = compiled.fresh(), Interval()
    call, metrics_time, wall = [], [], []
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
        writer = MetricsWriter(pathlib.Path(folder) / "metrics.jsonl")
        progress = Progress(nowhere, config.train.steps)
        for step in range(0, (WARM_UP + dispatches) * size, size):
            jax.block_until_ready(state)
            clock, start = time.perf_counter(), time.thread_time()
            state, metrics = compiled.advance(state, step)
            called, seconds = time.thread_time(), time.perf_counter() - clock
            jax.block_until_ready((state, metrics))
            ready, stop = time.thread_time(), step + size
            interval.add(fetch(metrics), stop)
            if stop % config.train.log_every == 0:
                line = {"step": stop, "seconds": clock, **interval.close()}
                writer.write(line)
                progress.update(stop, line["loss"], line["accuracy"])
            metrics_time.append(time.thread_time() - ready)
            call.append(called - start)
            wall.append(seconds)
    # A dispatch that ends between two lines of metrics has less to do, so what is done with metrics is averaged.
    parts = {
        "call": statistics.median(call[WARM_UP:]),
        "metrics": statistics.fmean(metrics_time[WARM_UP:]),
        "call_wall": statistics.median(wall[WARM_UP:]),
    }
    found = {name: 1e3 * seconds / size for name, seconds in parts.items()}
    return {**found, "host": found["call"] + found["metrics"], "steps_per_dispatch": size}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="Host time per train step.")
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--dispatches", type=int, default=50, help="dispatches that are counted")
    given = parser.parse_args()
    found = measure(given.config, given.dispatches)
    print(f"host time a step, of {found['steps_per_dispatch']} in a dispatch:  {found['host']:.4f} ms   (goal {GOAL})")
    print(f"  the call        {found['call']:.4f} ms   ({found['call_wall']:.4f} ms by the clock)")
    print(f"  the metrics     {found['metrics']:.4f} ms")
    results = {"config": given.config, "milliseconds_a_step": found, "goal": GOAL, "dispatches": given.dispatches}
    print(f"written: {record.write('host_cost', results).relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
