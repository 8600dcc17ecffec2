"""Logs that other tools have written, read into runs: one file a format."""

from dynamics.traces.foreign.import_log import import_log

__all__ = ["import_log"]
