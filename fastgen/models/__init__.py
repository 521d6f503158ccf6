"""Reference networks in plain PyTorch: what training trains, what the engine is judged by."""
