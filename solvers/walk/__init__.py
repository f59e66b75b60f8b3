"""The machinery that all diffusion solvers share; a method itself is in solvers/diffusion."""
