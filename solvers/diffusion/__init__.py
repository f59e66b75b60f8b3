"""Diffusion solvers, one method a file."""
