"""Shared by all tests. Triton reads TRITON_INTERPRET when first imported, which may be during collection."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores; two threads each would fight over them
