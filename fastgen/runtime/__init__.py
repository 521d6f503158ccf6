"""The sampling loop, graph capture, seeds and batching. Knows no network."""
