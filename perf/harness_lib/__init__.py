"""The parts of perf/harness and perf/compare."""
