"""Diffusion priors: a trained denoiser, how it is read, and foreign ones."""
