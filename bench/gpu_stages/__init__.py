"""The stages of a short run on a GPU: `bench/gpu_run.py` gives each a process, a deadline and the file of results.

A stage is a module here with `run(stage)`; it reports every item as soon as it is known.
"""
