"""Convolution, one algorithm a file."""
