"""Style-based generators: StyleGAN (Karras et al. 2019) and StyleGAN2 (Karras et al. 2020)."""
