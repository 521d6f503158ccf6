"""``python -m fastgen.bench``: speed, measured side by side, never of a result that was not checked first."""
