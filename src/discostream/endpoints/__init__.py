"""Places that generate: one contract, one file per dialect."""
