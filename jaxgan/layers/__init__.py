"""Building blocks of the networks."""

from jaxgan.layers.conv import Conv, ConvTranspose, same_padding
from jaxgan.layers.dense import Dense
from jaxgan.layers.norm import BatchNorm
from jaxgan.layers.spectral import SpectralNorm

__all__ = ["BatchNorm", "Conv", "ConvTranspose", "Dense", "SpectralNorm", "same_padding"]
