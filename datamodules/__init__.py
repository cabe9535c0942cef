"""One data set per file, and the loaders that make resume exact."""
