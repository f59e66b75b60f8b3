"""Priors with exact posteriors: Gaussians, mixtures of them, textures."""
