"""Comparisons with other projects: same weights, outputs compared before anything is timed."""
