"""The benchmark's cases for pytest-benchmark, which keeps and compares runs in its own way."""
