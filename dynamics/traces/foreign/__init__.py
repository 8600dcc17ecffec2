"""Logs that other tools have written, read into runs: one file a format."""
