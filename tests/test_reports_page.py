"""The page: whatever a run is called, nothing in it runs, loads or breaks out of its place."""

import re
from html import unescape
from pathlib import Path

import html5lib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from recorded import HOSTILE, HOSTILE_SETS, full_run, hostile_run, info, roster, write_run
from recorded import scalar_batches as scalars

import reports
from reports import write_report
from reports.page import Page, Panel, Section, write_csv
from reports.run_report import build_run_report
from reports.write_report import MAX_BYTES

TEMPLATE = (Path(reports.__file__).parent / "templates/report.html").read_text(encoding="utf-8")
SVG = {"svg", "defs", "g", "path", "style", "text", "tspan", "use", "clipPath", "rect", "image"}
LOADS = {"src", "href", "xlink:href", "srcset", "action", "formaction", "data", "poster"}


def elements(html):
    """(name, attributes) of every element as a browser sees it, in order."""
    tree = html5lib.parse(html, treebuilder="dom")
    for node in tree.getElementsByTagName("*"):
        yield node.tagName, dict(node.attributes.items())


def check_harmless(html):
    """The document holds the template's and matplotlib's elements, and loads and runs nothing."""
    of_template = {name.lower() for name in re.findall(r"<([a-z][a-z0-9]*)", TEMPLATE)}
    assert "script" not in of_template
    found = list(elements(html))
    assert {name for name, _ in found} <= of_template | SVG
    for name, attributes in found:
        assert [key for key in attributes if key.lower().startswith("on")] == []
        for key in LOADS & {*attributes}:
            assert attributes[key].startswith(("#", "data:image/png;base64,")), (name, key)
        for value in attributes.values():
            assert all(url.startswith("#") for url in re.findall(r"url\(['\"]?([^)]*)", value))
    head = [(name, a) for name, a in found if name in {"meta", "title", "style", "link"}]
    assert head[0] == ("meta", {"charset": "utf-8"})
    assert head[1][1]["http-equiv"] == "Content-Security-Policy"
    assert head[1][1]["content"].startswith("default-src 'none'; ")
    assert "script-src" not in head[1][1]["content"]
    assert "@import" not in html
    return found


def outline(found):
    """Names of the elements outside of drawings."""
    return [name for name, _ in found if name not in SVG - {"style"}]


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    """A run without hostile text: its report and the folder of its figures."""
    folder = tmp_path_factory.mktemp("harmless")
    run = full_run(folder / "run")
    path = write_report(run, folder / "deep/er/report.html", figures=folder / "figures")
    return run, path, folder / "figures"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every hostile text everywhere: the report and the folder of its figures."""
    folder = tmp_path_factory.mktemp("hostile")
    path = write_report(hostile_run(folder / "run"), folder / "r.html", figures=folder / "figures")
    return path.read_text(encoding="utf-8"), folder / "figures"


def test_an_ordinary_page_is_harmless_and_small(harmless):
    _, path, _ = harmless
    check_harmless(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < MAX_BYTES


def test_hostile_names_stay_text(hostile):
    html, _ = hostile
    found = check_harmless(html)
    assert len([name for name, _ in found if name == "svg"]) == 12 + len(HOSTILE_SETS)
    for text in HOSTILE:
        assert text in unescape(html)


def test_hostile_names_make_no_file_outside_of_the_folder_and_each_set_has_its_own(hostile):
    _, folder = hostile
    files = [path.name for path in folder.iterdir()]
    assert all(re.fullmatch(r"[\w.-]+", name) for name in files)
    assert len([name for name in files if name.startswith("predicted_frac_")]) == 4 * len(
        HOSTILE_SETS
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_folder_name_stays_text(tmp_path, text):
    name = text.replace("/", "")
    plain = build_run_report(write_run(tmp_path / "plain", {})).to_html()
    html = build_run_report(write_run(tmp_path / name, {})).to_html()
    found = check_harmless(html)
    assert outline(found) == outline(elements(plain))
    assert f"Training dynamics of {name}" in unescape(html)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def empty_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("empty") / "run", {})


@given(config=st.dictionaries(st.text(), json_values, min_size=1, max_size=4))
@settings(max_examples=60)
def test_any_configuration_stays_text(empty_run, config):
    empty_run.info["config"] = {"a": 1}
    expected = outline(elements(build_run_report(empty_run).to_html()))
    empty_run.info["config"] = {**config, "a": 1}
    html = build_run_report(empty_run).to_html()
    assert outline(check_harmless(html)) == expected


def test_text_that_is_no_unicode_does_not_stop_the_report(empty_run, tmp_path):
    """JSON may hold half of a surrogate pair, and `run.json` is read with it."""
    empty_run.info["config"] = {"a": "\ud800", "b": "\x00\x1b"}
    path = write_report(empty_run, tmp_path / "report.html")
    check_harmless(path.read_text(encoding="utf-8"))


def test_ids_are_unique_also_when_sets_have_like_names(tmp_path):
    tables = {"scalars": scalars(sets=("a b", "a_b", "a b: class 1"), epochs=2)}
    page = build_run_report(write_run(tmp_path / "run", tables))
    panels = [panel for section in page.sections for panel in section.panels]
    names = [panel.name for panel in panels]
    assert len(set(names)) == len(names)
    sizes = [len(t) for p in panels if p.name.startswith("predicted") for t in p.tables.values()]
    assert sizes == [8, 8, 8]  # 2 epochs of 4 classes each, none of another set


def test_a_name_that_the_template_does_not_know_is_an_error():
    page = Page("t", "s", [], [], [Section("s", [object()])], [], {})
    with pytest.raises(UndefinedError):
        page.to_html()


def test_figures_come_as_png_svg_pdf_and_csv_for_every_panel_recorded(harmless):
    run, _, folder = harmless
    panels = [p for section in build_run_report(run).sections for p in section.panels]
    assert len(panels) == 13
    assert all(panel.draw for panel in panels)
    expected = {f"{p.name}.{ending}" for p in panels for ending in ("png", "svg", "pdf", "csv")}
    assert {path.name for path in folder.iterdir()} == expected
    starts = {"png": b"\x89PNG\r\n", "pdf": b"%PDF-", "svg": b"<?xml"}
    for path in folder.iterdir():
        assert path.read_bytes().startswith(starts.get(path.suffix[1:], b""))


def test_the_csv_holds_the_data_drawn(harmless):
    run, _, folder = harmless
    table = pd.read_csv(folder / "accuracy.csv")
    expected = run.scalars("accuracy").reset_index(drop=True)
    np.testing.assert_allclose(table["value"], expected["value"])
    assert list(table["block"]) == list(expected["block"])
    assert pd.read_csv(folder / "data_map.csv")["sample_id"].tolist() == list(range(120))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_text_that_a_spreadsheet_would_run_is_prefixed_and_numbers_are_not(tmp_path, start):
    table = pd.DataFrame({"block": [f"{start}HYPERLINK()", "fine"], "value": [-1.5, 2.0]})
    read = pd.read_csv(write_csv(table, tmp_path / "t.csv"))
    assert len(read) == 2
    assert read["block"][0].startswith("'")
    assert read["block"][1] == "fine"
    assert read["value"].tolist() == [-1.5, 2.0]
    assert table["block"].tolist()[0] == f"{start}HYPERLINK()"  # the caller's table is left alone


def test_a_line_break_within_a_text_starts_no_row_with_a_formula(tmp_path):
    table = pd.DataFrame({"block": ["a\r=1+1", "b\n=1+1", "c\r\n=1+1", 'd",\n=1+1'], "value": 1})
    read = pd.read_csv(write_csv(table, tmp_path / "t.csv"))
    assert len(read) == 4
    assert read["value"].tolist() == [1, 1, 1, 1]


def test_a_formula_in_a_block_name_of_a_run_is_prefixed(tmp_path):
    tables = {"scalars": scalars(test="=1+1", epochs=2)}
    write_report(write_run(tmp_path / "r", tables), tmp_path / "r.html", figures=tmp_path / "f")
    assert set(pd.read_csv(tmp_path / "f/accuracy.csv")["block"]) == {
        "'=1+1",
        "train, noisy labels",
    }


def test_the_same_run_gives_the_same_bytes(harmless):
    run, path, _ = harmless
    again = path.with_name("again.html")
    write_report(run, again)
    assert again.read_bytes() == path.read_bytes()


def test_a_panel_is_drawn_once_for_a_page():
    drawn = []
    panel = Panel("p", "title", "", lambda ax: drawn.append(ax.plot([0, 1])))
    Page("t", "s", [], [], [Section("s", [panel])], [], {}).to_html()
    assert len(drawn) == 1


def test_the_data_map_of_20000_samples_fits_into_two_megabytes(tmp_path):
    n = 20_000
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.99, n)
    labels = rng.integers(0, 4, n)
    keys = {"step": np.zeros(n, int), "epoch": np.zeros(n, int), "sample_id": np.arange(n)}
    rows = keys | {"loss": -np.log(p), "p_true": p, "margin": p, "grad_norm": 1 - p}
    batches = [rows, rows | {"step": keys["step"] + 1, "epoch": keys["epoch"] + 1, "p_true": 1 - p}]
    tables = {"samples": batches, "roster": roster(labels, (labels + (p < 0.3)) % 4)}
    run = write_run(tmp_path / "run", tables, about=info(n_samples=n))
    assert write_report(run, tmp_path / "r.html").stat().st_size <= MAX_BYTES == 2_000_000
