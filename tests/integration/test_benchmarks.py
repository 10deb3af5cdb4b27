"""The benchmark of attention in its smallest form: its JSON can be read, and what is not timed has a reason."""

import json
import os
import subprocess
import sys

SIZES = ["--lengths", "130", "--other-lengths", "64", "--masks", "random_blocks", "documents", "--rounds", "1"]


def run(root, folder, *more):
    command = [sys.executable, "benchmarks/attention.py", "--folder", str(folder), *SIZES, *more]
    env = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # which compiles sooner
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "attention_cpu.json").read_text())


def test_attention_is_timed_with_ratios_and_reasons(root, tmp_path):
    printed, found = run(
        root, tmp_path, "--impl", "xla_dense", "xla_chunked", "jax_nn_cudnn", "--modes", "train", "penalty"
    )
    assert {"device", "commit", "date", "versions", "given", "libraries"} <= set(found)
    rows = found["attentions"]
    timed = [row for row in rows if row["impl"].startswith("xla")]
    assert len(timed) == 8
    assert all(row["milliseconds"] <= row["median"] and row["memory"] > 0 for row in timed)
    assert all(row["ratio"] == 1 for row in timed if row["impl"] == "xla_dense")
    assert sum("extra" in row for row in timed) == 4
    assert {row.get("skipped") for row in rows} == {
        None,
        "the kernel is for gpu",
        "the library does not tell the attention received",
    }
    assert "jax_nn_cudnn: the kernel is for gpu (random_blocks 130 train, " in printed


def test_attention_stops_when_the_minutes_are_over(root, tmp_path):
    printed, found = run(root, tmp_path, "--minutes", "0")
    assert found["attentions"] == []
    assert found["left_out"][0] == {"mask": "random_blocks", "length": 130}
    assert "documents 64 (the minutes are over)" in printed
