"""Other projects' checkpoints to fastgen's and back: one file a source. Installed as ``fastgen.converters``."""
