"""Longer comparisons with other projects: same weights, outputs compared before anything is timed.

What `python -m fastgen.bench --against NAME` runs lives in `fastgen/bench/baselines`.
"""
