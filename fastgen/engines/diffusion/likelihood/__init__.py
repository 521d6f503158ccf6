"""How likely a diffusion model finds data: by the probability flow, or bounded by the variational bound."""

from .results import DiffusionBits, LogProb, Terms
from .verbs import bits_per_dim, log_prob

__all__ = ["DiffusionBits", "LogProb", "Terms", "bits_per_dim", "log_prob"]
