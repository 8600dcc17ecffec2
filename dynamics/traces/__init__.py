"""The trace: its schema, how it is written, how it is read and how a run is taken up again."""

from dynamics.traces.errors import CorruptTraceError, SchemaError, StaleWriterError, TraceError
from dynamics.traces.foreign.import_log import import_log
from dynamics.traces.open import open_run, open_study
from dynamics.traces.reader import Run
from dynamics.traces.resume import begin_attempt, create_run
from dynamics.traces.schema import SCHEMA_VERSION, TABLES, Status
from dynamics.traces.study import Study
from dynamics.traces.writer import TraceWriter

__all__ = [
    # reading
    "Run",
    "Study",
    "open_run",
    "open_study",
    # writing
    "TraceWriter",
    "begin_attempt",
    "create_run",
    "import_log",
    # the format
    "SCHEMA_VERSION",
    "TABLES",
    "Status",
    # what can go wrong
    "CorruptTraceError",
    "SchemaError",
    "StaleWriterError",
    "TraceError",
]
