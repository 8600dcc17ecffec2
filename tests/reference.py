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


def output_fisher(z, likelihood):
    """Fisher information of the outputs of one position, by its formula, shape (C, C)."""
    if likelihood == "softmax":
        p = z.softmax(dim=0)
        return torch.diag(p) - torch.outer(p, p)
    if likelihood == "bernoulli":
        return torch.diag(z.sigmoid() * (1 - z.sigmoid()))
    return torch.eye(len(z), dtype=z.dtype)


def fisher_diagonals(model, x, likelihood="softmax", counted=None):
    """Diagonal of Jᵀ H J of each input, with the whole Jacobian J: {parameter: (N, *shape)}.

    Output (N, T, C) of softmax is T positions; otherwise every output is one. `counted` says which.
    """
    model, x = _in_double(model, x)
    model.eval()
    parameters = _named_trainable(model)
    diagonals = {name: p.new_zeros(len(x), *p.shape).detach() for name, p in parameters.items()}
    for i in range(len(x)):
        z = model(x[i : i + 1])[0]
        positions = z.reshape(-1, z.shape[-1] if likelihood == "softmax" else 1)
        for t in range(len(positions)):
            if counted is not None and not counted[i].reshape(-1)[t]:
                continue
            fisher = output_fisher(positions[t].detach(), likelihood)
            rows = [
                torch.autograd.grad(
                    output, list(parameters.values()), retain_graph=True, allow_unused=True
                )
                for output in positions[t]
            ]
            for name, columns in zip(parameters, zip(*rows, strict=True), strict=True):
                if columns[0] is not None:
                    jacobian = torch.stack(columns)
                    pulled = torch.tensordot(fisher, jacobian, dims=1)
                    diagonals[name][i] += (jacobian * pulled).sum(0)
    return diagonals


def score_squares(model, x, y, log_likelihood):
    """Squared gradient of each sample's log-likelihood: {parameter: (N, *shape)}."""
    model, x, y = _in_double(model, x, y)
    model.eval()
    parameters = _named_trainable(model)
    squares = {name: [] for name in parameters}
    for i in range(len(x)):
        score = log_likelihood(model(x[i : i + 1]), y[i : i + 1]).sum()
        gradients = torch.autograd.grad(score, list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            zero = torch.zeros_like(parameter)
            squares[name].append((zero if gradient is None else gradient).square())
    return {name: torch.stack(rows) for name, rows in squares.items()}


def by_block(model, diagonals, blocks):
    """Σ_j d_j and Σ_j w_j² d_j of each input, and ‖w‖²: {block: (shape (N,), shape (N,), number)}.

    A parameter counts in the block whose module holds it; the model's class names the model itself.
    """
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    found = {}
    for block in ("total", *blocks):
        whole = block in ("total", type(model).__name__)
        names = [name for name in diagonals if whole or name.startswith(f"{block}.")]
        rows = [diagonals[name].reshape(len(diagonals[name]), -1) for name in names]
        traces = sum(row.sum(1) for row in rows)
        scale_free = sum(
            row @ weights[n].reshape(-1) ** 2 for n, row in zip(names, rows, strict=True)
        )
        found[block] = (traces, scale_free, sum(weights[n].square().sum().item() for n in names))
    return found
