"""Building blocks of the networks."""

from jaxgan.layers.conv import Conv, ConvTranspose, same_padding
from jaxgan.layers.norm import BatchNorm

__all__ = ["BatchNorm", "Conv", "ConvTranspose", "same_padding"]
