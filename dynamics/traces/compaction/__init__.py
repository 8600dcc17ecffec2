"""Many parts into few files, sorted by sample."""
