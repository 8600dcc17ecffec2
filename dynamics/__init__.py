"""Dynamics: traces in, estimates with uncertainty out. Needs no GPU and no torch."""

from dynamics.export import export_table
from dynamics.traces import Run, Study, import_log, open_run, open_study

__all__ = ["Run", "Study", "export_table", "import_log", "open_run", "open_study"]
