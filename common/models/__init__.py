"""A small detector, how it is trained while images arrive, and how it is judged. Needs torch."""
