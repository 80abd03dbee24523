"""Arrays on CPU and GPU, threads, files, data: what everything else stands on."""
