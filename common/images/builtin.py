"""Importing this module registers every image codec of the product."""

from fogline.common.images import avif2, jpeg2, latent, nerv, siren

__all__ = ["avif2", "jpeg2", "latent", "nerv", "siren"]
