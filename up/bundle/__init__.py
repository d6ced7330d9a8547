"""Packages: what reads, checks and runs them. Nothing here imports torch."""
