"""Networks from images to images, and their discriminators, in plain PyTorch (Isola et al. 2017, Zhu et al. 2017)."""
