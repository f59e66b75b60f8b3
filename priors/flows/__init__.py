"""Normalizing flows: invertible maps with known volume, and the priors made of them."""
