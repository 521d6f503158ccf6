"""Export forms: what each architecture's networks become outside of PyTorch, declared in `architectures.py`.

A file's tensors are in the units of the engine's verbs (images in [-1, 1]), and so are the names that
``fastgen.onnx_runtime`` looks for:

    denoiser   x, time, [label]                      -> output
    encode     x, [labels | context]                 -> latents_0 .. latents_K, log_det, log_prob
    decode     latents_0 .. latents_K, [labels | context] -> x
    sample     seeds, temperature, [labels | context]     -> x, of the noise that the engine makes of these seeds
    elbo       levels, seeds, draws, [labels | context]   -> elbo, what the engine's bits_per_dim averages
    translate  x                                     -> y; translate_running, by the statistics of training
    translate_dropout  x, noise                      -> y, with dropout by the noise
    score      [x,] y                                -> score; score_running, by the statistics of training
    upscaler   x                                     -> y, scale times as high and wide
    generator  z, [labels], [truncation]             -> x, of a GAN
    mapping    z, [labels], truncation_psi, truncation_cutoff -> ws, of a style-based GAN
    synthesis  ws                                    -> x; synthesis_noise: ws, noise_0 .. noise_K -> x
    score      x, [labels]                           -> score, of a GAN's discriminator
    stylize      content, style, alpha                        -> x
    encode_style style                                        -> code
    apply_style  content, code, alpha                         -> x

Of VAEs encode gives mean_0, log_var_0 .. mean_K, log_var_K; latents_0 is the top group's.

`latents_0` is the finest scale's. log_det is of the map to the latents; log_prob is the engine's, in nats. elbo exists
where a flow models levels.
"""

from .denoiser import DENOISER
from .flow import FLOW, support
from .form import BATCH, ExportForm, Interface, Port
from .gan import GAN_DISCRIMINATOR, GAN_GENERATOR
from .style import STYLE_FORMS as STYLE
from .stylegan import STYLEGAN_FORMS as STYLEGAN
from .translate import DISCRIMINATOR, GENERATOR
from .upscaler import UPSCALER
from .vae import VAE_FORMS

__all__ = [
    "BATCH",
    "DENOISER",
    "DISCRIMINATOR",
    "FLOW",
    "GAN_DISCRIMINATOR",
    "GAN_GENERATOR",
    "GENERATOR",
    "STYLE",
    "STYLEGAN",
    "UPSCALER",
    "VAE_FORMS",
    "ExportForm",
    "Interface",
    "Port",
    "support",
]
