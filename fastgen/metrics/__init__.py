"""How good images are, as numbers."""
