"""The obvious way: one sample after another, in float64, with `torch.autograd.grad`.

Nothing from `probes`, no BackPACK, no vmap. A block is the module that owns a parameter.
"""

import copy

import torch


def _in_double(model, *tensors):
    model = copy.deepcopy(model).double()
    return model, *(t.double() if t.is_floating_point() else t for t in tensors)


def _named_trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _squared_by_block(model, scalar):
    """Squared norm of the gradient of a scalar: in total and for each block."""
    parameters = _named_trainable(model)
    gradients = torch.autograd.grad(
        scalar, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    squared = {"total": 0.0}
    for name, gradient in zip(parameters, gradients, strict=True):
        block = name.rpartition(".")[0] or type(model).__name__
        value = 0.0 if gradient is None else gradient.square().sum().item()
        squared[block] = squared.get(block, 0.0) + value
        squared["total"] += value
    return squared


def _columns(rows):
    return {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in rows[0]}


def grad_norms(model, x, y, loss):
    """‖∇ℓ_i‖₂ of each sample: {"total": shape (N,), block: shape (N,), …}."""
    model, x, y = _in_double(model, x, y)
    rows = []
    for i in range(len(x)):
        sample_loss = loss(model(x[i : i + 1]), y[i : i + 1]).squeeze()
        rows.append(_squared_by_block(model, sample_loss))
    return {key: squared.sqrt() for key, squared in _columns(rows).items()}


def losses(model, x, y, loss):
    """ℓ_i of each sample, shape (N,)."""
    model, x, y = _in_double(model, x, y)
    with torch.no_grad():
        return torch.cat([loss(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))])


def fisher_traces(model, x):
    """Σ_c p_c ‖∇ log p_c‖² of each input, in eval mode: {"total": shape (N,), block: …}."""
    model, x = _in_double(model, x)
    model.eval()
    rows = []
    for i in range(len(x)):
        log_p = model(x[i : i + 1]).log_softmax(dim=1)[0]
        row = {}
        for c in range(len(log_p)):
            for key, squared in _squared_by_block(model, log_p[c]).items():
                row[key] = row.get(key, 0.0) + log_p[c].exp().item() * squared
        rows.append(row)
    return _columns(rows)


def empirical_traces(model, x, y):
    """‖∇ log p_{y_i}‖² of each input, in eval mode: {"total": shape (N,), block: …}."""
    model, x, y = _in_double(model, x, y)
    model.eval()
    rows = []
    for i in range(len(x)):
        log_p = model(x[i : i + 1]).log_softmax(dim=1)[0]
        rows.append(_squared_by_block(model, log_p[y[i]]))
    return _columns(rows)
