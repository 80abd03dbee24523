"""Layers, networks, optimisers, training."""
