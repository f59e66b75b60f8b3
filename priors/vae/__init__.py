"""Autoencoders: plain, variational, hierarchical."""
