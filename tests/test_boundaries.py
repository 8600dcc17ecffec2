"""The house rules: who may import whom, what stays light, and what no product file may hold."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dynamics
import dynamics.traces
import probes
import reports

ROOT = Path(__file__).parent.parent
PACKAGES = ("dynamics", "probes", "reports", "studies")
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_bytes()) for path in FILES}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MAY_IMPORT = {
    "dynamics.traces": {"dynamics.traces", "numpy", "pandas", "pyarrow", "duckdb"},
    "dynamics": {"dynamics", "numpy", "pandas", "scipy", "sklearn", "ruptures"},
    "probes": {"probes", "dynamics.traces", "torch", "numpy", "pandas", "tqdm"},
    "reports": {"reports", "dynamics", "numpy", "pandas", "matplotlib", "jinja2", "markupsafe"},
}
ONE_FILE_MAY = {
    "probes/engines/batch_l2.py": {"backpack"},
    "dynamics/traces/foreign/tensorboard.py": {"tensorboard"},
    "probes/integrations/lightning.py": {"lightning"},
    "probes/integrations/transformers.py": {"transformers"},
    "probes/integrations/accelerate.py": {"accelerate"},
    "probes/trackers/wandb.py": {"wandb"},
    "probes/trackers/mlflow.py": {"mlflow"},
    "dynamics/executors.py": {"ray"},
}


def floor_of(name):
    parts = Path(name).parts
    return "dynamics.traces" if parts[:2] == ("dynamics", "traces") else parts[0]


def imported_modules(tree):
    """Modules that a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module in {"dynamics", "importlib"}:  # what counts is what is taken from it
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def is_within(module, allowed):
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("name", [n for n in TREES if floor_of(n) != "studies"])
def test_a_file_imports_only_what_its_floor_may(name):
    allowed = MAY_IMPORT[floor_of(name)] | set(sys.stdlib_module_names)
    allowed |= ONE_FILE_MAY.get(name, set())
    assert [m for m in imported_modules(TREES[name]) if not is_within(m, allowed)] == []


def test_the_walk_sees_every_package_and_each_file_that_alone_may_import_something():
    assert {floor_of(name) for name in TREES} == {*MAY_IMPORT, "studies"}
    for file, modules in ONE_FILE_MAY.items():
        using = {
            n
            for n, t in TREES.items()
            if floor_of(n) != "studies" and any(is_within(m, modules) for m in imported_modules(t))
        }
        assert using == {file}


def test_nothing_is_imported_by_a_name_made_at_run_time():
    """The walk above would not see it."""
    for name, tree in TREES.items():
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"__import__", "import_module", "importlib.import_module"}, name


def run_python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_analysis_and_reports_need_no_torch():
    loaded = run_python("import sys, dynamics, reports; print(*sys.modules)")
    assert "reports.figures" in loaded
    assert not {"torch", "backpack", "probes", "studies", "matplotlib.pyplot"} & {*loaded}
    assert not {"duckdb", "tensorboard", "ray"} & {*loaded}  # those who ask for them wait for them


def test_help_imports_nothing_heavy():
    loaded = run_python(
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from studies.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'inspect' in result.output, result.output\n"
        "print(*sys.modules)"
    )
    assert "studies.cli" in loaded
    heavy = {"torch", "pandas", "matplotlib", "pyarrow", "duckdb", "numpy", "scipy", "sklearn"}
    assert not heavy & {*loaded}


def test_no_file_is_a_catch_all():
    vague = {"utils", "util", "helpers", "helper", "base", "misc", "common", "manager", "managers"}
    assert [name for name in TREES if Path(name).stem in vague] == []
    classes = [n.name for t in TREES.values() for n in ast.walk(t) if isinstance(n, ast.ClassDef)]
    assert [name for name in classes if name.endswith("Manager")] == []


def test_nothing_that_runs_text_or_unpickles():
    found = []
    for name, tree in TREES.items():
        modules = {module.partition(".")[0] for module in imported_modules(tree)}
        found += [
            (name, m)
            for m in modules
            & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in {"eval", "exec", "compile", "pickle"}:
                found.append((name, node.id))
            if isinstance(node, ast.Attribute) and node.attr in {"read_pickle", "to_pickle"}:
                found.append((name, node.attr))
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                setting = (node.arg, node.value.value)
                if setting in {("weights_only", False), ("allow_pickle", True), ("shell", True)}:
                    found.append((name, node.arg))
    assert found == []


def public_definitions(body, prefix=""):
    """Public functions and classes of a module, and the public methods of public classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_"):
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("name", TREES)
def test_everything_public_has_a_docstring(name):
    silent = [k for k, node in public_definitions(TREES[name].body) if not ast.get_docstring(node)]
    assert silent == []
    assert ast.get_docstring(TREES[name])


PUBLIC = {
    dynamics: "Run Study export_table import_log open_run open_study",
    dynamics.traces: "Run Study open_run open_study TraceWriter begin_attempt create_run "
    "import_log SCHEMA_VERSION TABLES Status CorruptTraceError SchemaError StaleWriterError "
    "TraceError",
    probes: "Recorder sequence_losses stable_id with_sample_ids FisherTrace GradNorm "
    "OutputGradNorm SampleLoss WeightEffect Schedule every FisherEstimate fisher_trace Probe "
    "Event Scalar Vector UnsupportedModelError",
    reports: "write_report plot_accuracy plot_best_and_final plot_data_map "
    "plot_deficit_removal plot_deficits plot_detection_auc plot_effect_size plot_fall "
    "plot_fisher_phases plot_fisher_runs plot_fisher_share plot_fisher_trace "
    "plot_grad_norm plot_gradient_share plot_imbalance_error plot_importance_gain "
    "plot_label_precision plot_left_out_error plot_loss plot_loss_mixture "
    "plot_margin_angle plot_memorisation plot_noise_law plot_peak_fisher "
    "plot_posterior_calibration plot_predicted_first plot_predicted_frac "
    "plot_prediction_shares plot_pull_share plot_ratio_estimates plot_scheme_accuracy "
    "plot_scheme_cost plot_score_agreement plot_switch plot_weight_reach "
    "plot_weighted_gradient_share plot_weighting plot_window_sensitivity",
}


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)
def test_public_names_are_these_and_exist(package):
    assert package.__all__ == PUBLIC[package].split()
    assert all(hasattr(package, name) for name in package.__all__)


def test_every_figure_function_is_public():
    trees = [tree for name, tree in TREES.items() if floor_of(name) == "reports"]
    names = {n.name for tree in trees for n in tree.body if isinstance(n, ast.FunctionDef)}
    drawn = {name for name in names if name.startswith("plot_")}
    assert drawn == {name for name in reports.__all__ if name.startswith("plot_")}


def test_no_product_file_passes_400_lines():
    lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in FILES}
    assert {name: n for name, n in lines.items() if n > 400} == {}


def test_distribution_command_and_packages():
    project = PYPROJECT["project"]
    assert project["name"] == "training-dynamics"
    assert project["scripts"] == {"dynamics": "studies.cli:app"}
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": list(PACKAGES)}


def test_every_package_says_that_it_is_typed_and_each_folder_is_a_package():
    assert all((ROOT / name / "py.typed").is_file() for name in PACKAGES)
    assert all((path.parent / "__init__.py").is_file() for path in FILES)
