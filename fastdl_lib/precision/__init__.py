"""Numbers in few bits: formats, products, mixed precision, weights kept narrow."""
