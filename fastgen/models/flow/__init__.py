"""Normalising flows in plain PyTorch: layers that know their inverse and log-determinant, and networks made of them."""
