"""Shared by all tests. Triton reads TRITON_INTERPRET when it is first imported, which may be during collection."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
