"""Building blocks of the networks."""

from jaxgan.layers.attention import SelfAttention
from jaxgan.layers.conv import Conv, ConvTranspose, same_padding
from jaxgan.layers.dense import Dense
from jaxgan.layers.norm import BatchNorm, ConditionalBatchNorm, FiLM
from jaxgan.layers.spectral import SpectralNorm

__all__ = [
    "BatchNorm",
    "ConditionalBatchNorm",
    "Conv",
    "ConvTranspose",
    "Dense",
    "FiLM",
    "SelfAttention",
    "SpectralNorm",
    "same_padding",
]
