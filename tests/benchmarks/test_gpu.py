"""The benchmark of GPUs, at a small size on the CPU."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib
import json

import pytest


@pytest.fixture
def bench_gpu(project_root, monkeypatch):
    """Import the script as if it were run."""
    monkeypatch.syspath_prepend(project_root / "benchmarks")
    return importlib.import_module("bench_gpu")


def test_small_run(bench_gpu, tmp_path):
    out = tmp_path / "gpu.json"
    bench_gpu.main(["--device", "cpu", "--small", "--out", str(out)])
    results = json.loads(out.read_text())
    assert results["left_out"] == []
    assert "logical cores" in results["hardware"]
    assert {row["aggregator"] for row in results["steps"]} == set(bench_gpu.AGGREGATORS)
    assert results["encode"]["tiles_per_second"] > 0
    assert results["roofline"]["float32_tflops"] > 0
    assert results["lambdas"]["table2_hours_extrapolated"] > 0


def test_steps_after_the_time_are_named(bench_gpu, tmp_path):
    out = tmp_path / "gpu.json"
    bench_gpu.main(["--device", "cpu", "--small", "--minutes", "0", "--out", str(out)])
    assert json.loads(out.read_text())["left_out"] == list(bench_gpu.STEPS)
    with pytest.raises(SystemExit):
        bench_gpu.main(["--device", "cpu"])
