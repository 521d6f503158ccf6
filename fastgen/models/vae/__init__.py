"""Variational autoencoders: flat, hierarchical, and diffusers' AutoencoderKL."""
