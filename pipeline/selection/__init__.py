"""Which pool images a split keeps."""
