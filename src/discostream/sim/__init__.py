"""The simulator: recorded servers, real workloads and known devices, a request a position in arrays."""
