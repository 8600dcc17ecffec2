"""The trace format's own rules: versions, columns, status bits, and the page written from them."""

from pathlib import Path

import pyarrow as pa
import pytest

from dynamics.traces import SCHEMA_VERSION, TABLES, SchemaError, Status
from dynamics.traces.format_page import describe_format
from dynamics.traces.schema import check_schema_version

MAJOR = int(SCHEMA_VERSION.partition(".")[0])


@pytest.mark.parametrize("version", [SCHEMA_VERSION, f"{MAJOR}.7", f"{MAJOR}.123"])
def test_any_minor_of_the_same_major_is_read(version):
    check_schema_version(version, "run.json")


@pytest.mark.parametrize("major", [0, MAJOR + 1, 10 * MAJOR, 99])
def test_another_major_is_refused_and_the_version_needed_is_named(major):
    with pytest.raises(SchemaError) as error:
        check_schema_version(f"{major}.3", "some/run.json")
    message = str(error.value)
    assert "some/run.json" in message
    assert f"{major}.3" in message
    assert SCHEMA_VERSION in message
    assert f"starts with {major}." in message


@pytest.mark.parametrize(
    "version",
    [None, 1, 1.0, "", "1", "1.", ".0", "1.0.1", "one.two", " 1.0", "1.0\n", "-1.0", ["1.0"], "²."],
)
def test_a_garbled_version_is_refused(version):
    with pytest.raises(SchemaError, match=r"no readable schema_version"):
        check_schema_version(version, "run.json")


@pytest.mark.parametrize("table", TABLES)
def test_an_unknown_column_is_refused_by_name(table):
    with pytest.raises(SchemaError, match="'los'") as error:
        TABLES[table].schema(["los"])
    assert table in str(error.value)
    assert TABLES[table].column_names[0] in str(error.value)  # says which there are


def test_a_block_column_is_a_nullable_float_after_the_fixed_columns():
    schema = TABLES["samples"].schema(["grad_norm/0.weight", "loss", "grad_norm/2"])
    assert schema.names == [*TABLES["samples"].column_names, "grad_norm/0.weight", "grad_norm/2"]
    assert schema.field("grad_norm/2") == pa.field("grad_norm/2", pa.float32())


@pytest.mark.parametrize("table", ["scalars", "events", "roster"])
def test_block_columns_belong_to_samples_only(table):
    with pytest.raises(SchemaError, match="'grad_norm/0'"):
        TABLES[table].schema(["grad_norm/0"])


def test_only_keys_and_status_may_not_be_missing():
    required = {c.name for c in TABLES["samples"].columns if not c.nullable}
    assert required == {"step", "epoch", "sample_id", "occurrence", "status"}


def test_every_column_says_what_it_means():
    for table in TABLES.values():
        assert table.description
        assert set(table.sorted_by) <= set(table.column_names)
        for column in table.columns:
            assert column.convention, column.name
            assert column.unit or column.type == pa.string(), column.name


def test_status_bits_are_distinct_powers_of_two():
    bits = [bit.value for bit in Status.__members__.values()]
    assert len(set(bits)) == len(bits)
    assert all(bit > 0 and bit & (bit - 1) == 0 for bit in bits)
    assert max(bits) < 2**31  # stored as int32


def test_the_page_on_the_trace_format_is_up_to_date():
    page = Path(__file__).parents[1] / "docs" / "trace-format.md"
    assert page.read_text(encoding="utf-8") == describe_format()
