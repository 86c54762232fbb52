"""Architectures: one file each, with a `Generator` and a `Discriminator`."""
