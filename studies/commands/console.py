"""How the commands speak: what goes to the terminal, and which exit code an error has."""

import contextlib
from collections.abc import Iterator
from typing import Never

import typer

FINDING, USAGE, CORRUPT = 1, 2, 3


def say(text: str) -> None:
    """Tell the person at the terminal; results go to stdout, this to stderr."""
    typer.echo(text, err=True)


def fail(text: str, code: int = USAGE) -> Never:
    """End the command with a message and an exit code."""
    typer.echo(f"dynamics: {text}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the errors that a user can mend into a paragraph and an exit code."""
    from dynamics.traces import CorruptTraceError, TraceError

    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output has had enough; no mistake to explain
    except CorruptTraceError as error:
        fail(str(error), CORRUPT)
    except (TraceError, ValueError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; what was recorded is kept.", 130)
