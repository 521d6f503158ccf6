"""Plain PyTorch training of the reference networks."""
