"""Loops compiled for this CPU, below the layers and algorithms that use them."""
