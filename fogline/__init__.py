"""Fogline: learning across edge, fog and cloud."""

__version__ = "0.1.0"
