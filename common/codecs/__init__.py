"""Tensor codecs: what makes activations and gradients small on the wire. `Chain.parse("fp16+zstd")`.

Importing this package registers every codec of the product.
"""

from fogline.common.codecs import affine, c3sl, errbound, half, jpeg_input, raw, topk, zstd
from fogline.common.codecs.base import stages
from fogline.common.codecs.chain import Chain, CodedStage, Decoder, Encoded, Encoder

__all__ = [
    "Chain",
    "CodedStage",
    "Decoder",
    "Encoded",
    "Encoder",
    "affine",
    "c3sl",
    "errbound",
    "half",
    "jpeg_input",
    "raw",
    "stages",
    "topk",
    "zstd",
]
