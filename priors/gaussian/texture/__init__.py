"""The stationary Gaussian texture, and kriging."""
