"""Parts of perf/peers/engines.py."""
