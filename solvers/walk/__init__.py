"""The machinery that all diffusion solvers share."""
