"""Many machines: the simulator, published curves, real ranks over MPI."""
