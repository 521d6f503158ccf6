"""Capture of steps in graphs, batches that fit in memory, choice of device and dtype. Knows no network."""
