"""What the machine can do, measured between the rounds."""

import json
import tempfile
from pathlib import Path
from statistics import median

from .runs import call, locked

GEMM_ROWS = 512


def read_bandwidth(setup):
    """Bytes a second that all threads read together: the better kind of pages, median of its passes."""
    found = json.loads(call([setup.folder / "read_bandwidth", setup.threads]))
    return max(median(rates) for rates in found.values())


def gemm_rate(setup):
    """Operations a second of Atoll's own GEMM at 512 rows, the better of an expert's two shapes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "gemm.json"
        call([setup.build / "perf/kernels_bench", f"--benchmark_out={out}",
              "--benchmark_out_format=json",
              f"--benchmark_filter=gemm/{GEMM_ROWS}x.*/threads:{setup.threads}/"])  # fmt: skip
        runs = json.loads(out.read_text())["benchmarks"]
    rates = [run["value_GFLOP/s"] * 1e9 for run in runs if run.get("aggregate_name") == "median"]
    if not rates:
        raise RuntimeError(
            f"{setup.build}/perf/kernels_bench measures no GEMM with {setup.threads} threads (it knows "
            "1 and 2); take --threads of these")  # fmt: skip
    return max(rates)


def measure(setup):
    with locked(setup.lock):
        return {"bytes_per_s": read_bandwidth(setup), "gemm_flops_per_s": gemm_rate(setup)}
