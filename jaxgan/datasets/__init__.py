"""Data sets that TFDS lacks: each is a folder with a TFDS builder, found by its name."""
