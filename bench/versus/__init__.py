"""Longer comparisons with other projects, a script each: same weights, outputs compared before anything is timed.

What `python -m fastgen.bench --against NAME` runs lives in `fastgen/bench/baselines`, and is used here.
"""
