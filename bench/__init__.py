"""Comparisons with other projects; not installed."""
