"""Solvers in the latent of a prior, and what they share."""
