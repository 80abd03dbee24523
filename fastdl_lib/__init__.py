"""What the notebooks of the fastdl course call: one room an idea (see README.md)."""
