"""``fastgen evaluate`` of a diffusion model: its flags, which are the options of ``DiffusionEngine.bits_per_dim``."""

from __future__ import annotations

from .family import Flag

FLAGS = (
    Flag(
        "--method",
        {
            "choices": ("ode", "bound"),
            "help": "the probability flow (default), or the variational bound, which --plot draws by timestep",
        },
    ),
    Flag(
        "--solver",
        {
            "choices": ("rk4", "heun", "dopri5"),
            "help": "of the flow; dopri5 is adaptive and needs torchdiffeq",
        },
    ),
    Flag("--steps", {"type": int, "help": "of rk4 and heun"}),
    Flag("--rtol", {"type": float, "help": "of dopri5 (default 1e-5)"}),
    Flag("--atol", {"type": float, "help": "of dopri5 (default 1e-5)"}),
    Flag(
        "--trace",
        {
            "choices": ("auto", "exact", "hutchinson"),
            "help": "of the flow's Jacobian: exact takes a gradient per pixel and step; auto: exact up to 64 pixels",
        },
    ),
    Flag(
        "--dequantisation",
        {
            "choices": ("uniform", "decoder"),
            "help": "what stands between levels and the flow's density (default: decoder in discrete time)",
        },
    ),
    Flag(
        "--timesteps",
        {"type": int, "metavar": "K", "help": "terms of the bound drawn for each image (default: all)"},
    ),
    Flag(
        "--levels",
        {"type": int, "help": "of the bound's chain, of a model in continuous time (default 1000)"},
    ),
    Flag(
        "--variance-type",
        {"metavar": "TYPE", "help": "of the bound's steps: fixed_small, fixed_large, learned, learned_range"},
    ),
)
