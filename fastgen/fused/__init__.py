"""Fast twins of reference networks: the same parameters, what is constant at inference folded beforehand."""
