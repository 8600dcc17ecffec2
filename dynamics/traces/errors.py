"""What can be wrong with a trace, as types a caller can tell apart."""


class TraceError(Exception):
    """A trace cannot be read or written; the message says which file and how to mend it."""


class SchemaError(TraceError, ValueError):
    """A table, column, type or schema version is not the one that the trace format defines."""


class CorruptTraceError(TraceError):
    """Stored bytes are not the bytes that were written."""


class StaleWriterError(TraceError):
    """Another process has taken over the run, so this one must not write to it any more."""
