"""Exact Fisher traces equal those of curvlinops, nngeometry and BackPACK."""

import warnings

import pytest
import torch
from cases import build
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probes import fisher_trace

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of which they raise many


@pytest.fixture(autouse=True)
def double_precision():
    """nngeometry makes tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def import_or_skip(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def network(name):
    case = build(name, torch.float64)
    for module in case.model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return case


def exact(case):
    return fisher_trace(case.model, case.x, kind="exact", batch_size=4, diagonal=True)


CURVLINOPS = ("mlp", "frozen", "cnn", "layer_norm", "batch_norm_eval", "embedding", "prelu")


@pytest.mark.parametrize("name", CURVLINOPS)
def test_curvlinops(name):
    curvlinops = import_or_skip("curvlinops")
    case = network(name)
    parameters = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    ggn = curvlinops.GGNLinearOperator(
        case.model, nn.CrossEntropyLoss(), list(parameters.values()), [(case.x, case.y)]
    )
    theirs = (ggn @ torch.eye(ggn.shape[1])).diagonal()
    ours = exact(case)
    assert ours.value == pytest.approx(theirs.sum().item(), rel=1e-9)
    flat = torch.cat([ours.diagonal[name].flatten() for name in parameters])
    torch.testing.assert_close(flat, theirs, rtol=1e-8, atol=1e-12)


def test_curvlinops_with_other_likelihoods():
    """Its mean is over all N · C outputs, and its squared error is twice ours."""
    curvlinops = import_or_skip("curvlinops")
    case = network("mlp")
    targets = torch.rand(case.model(case.x).shape)
    for likelihood, loss, factor in (
        ("bernoulli", nn.BCEWithLogitsLoss(), targets.shape[1]),
        ("gaussian", nn.MSELoss(), targets.shape[1] / 2),
    ):
        parameters = list(case.model.parameters())
        ggn = curvlinops.GGNLinearOperator(case.model, loss, parameters, [(case.x, targets)])
        theirs = factor * torch.trace(ggn @ torch.eye(ggn.shape[1])).item()
        ours = fisher_trace(case.model, case.x, kind="exact", likelihood=likelihood).value
        assert ours == pytest.approx(theirs, rel=1e-9), likelihood


@pytest.mark.parametrize("name", ["mlp", "cnn", "layer_norm", "conv1d"])
@pytest.mark.parametrize("representation", ["PMatDense", "PMatImplicit"])
def test_nngeometry(name, representation):
    import_or_skip("nngeometry")
    from nngeometry import object as matrices
    from nngeometry.metrics import FIM

    case = network(name)
    loader = DataLoader(TensorDataset(case.x, case.y), batch_size=3)
    kind = getattr(matrices, representation)
    theirs = FIM(case.model, loader, kind, variant="classif_logits").trace().item()
    assert exact(case).value == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_backpack(name):
    """Its diagonal of the generalised Gauss-Newton matrix, which is the Fisher's here."""
    backpack = import_or_skip("backpack")
    from backpack.extensions import DiagGGNExact

    case = network(name)
    ours = exact(case)
    model = backpack.extend(case.model)
    loss = backpack.extend(nn.CrossEntropyLoss())(model(case.x), case.y)
    with backpack.backpack(DiagGGNExact()):
        loss.backward()
    assert sum(p.diag_ggn_exact.sum().item() for p in model.parameters()) == pytest.approx(
        ours.value, rel=1e-9
    )
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(
            ours.diagonal[parameter_name], parameter.diag_ggn_exact, rtol=1e-8, atol=1e-12
        )
