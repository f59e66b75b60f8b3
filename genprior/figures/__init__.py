"""Figures of papers, made again; one file a chapter."""
