"""The self-test of an engine: do the uses that its hooks have seen explain training's gradients?"""

from collections.abc import Set

import torch

from probes.engines.capture import NormCapture

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}
"""Relative difference that rounding may make, by the least precise type on the way."""


def find_faults(capture: NormCapture, n: int) -> list[str]:
    """What makes the norms of a backward pass useless, whatever their values.

    Args:
        capture: A capture whose backward pass is over.
        n: Samples in the batch.

    Returns:
        One line each; empty if nothing does.
    """
    if not capture.norms_sq:
        return [
            "no layer's hook fired: the losses do not depend on a parameter, or the model was "
            "compiled and called before the hooks were placed (enter the recorder first, then call "
            "torch.compile)"
        ]
    return capture.problems + [
        f"`{block}` works on {norms_sq.numel()} rows where the batch has {n} samples; its first "
        "dimension must be the sample"
        for block, norms_sq in capture.norms_sq.items()
        if norms_sq.shape != (n,)
    ]


def compare_gradients(
    capture: NormCapture, names: Set[str], fused: Set[str]
) -> tuple[list[str], set[str]]:
    """Compare what the hooks have seen with the gradients that training got.

    Args:
        capture: A capture whose backward pass is over.
        names: Parameters to be verified.
        fused: Those whose layer formed this very gradient from the samples.

    Returns:
        What is wrong, one line each, and the parameters that passed.
    """
    problems, passed = [], set()
    gradients = [gradient for gradient in capture.reached.values() if gradient is not None]
    # A gradient can be zero but for rounding, as that of a bias before a normalisation; then two
    # ways to it differ by as much as it has.
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
    whole = torch.stack(norms).norm() if gradients else 0.0
    for name in sorted(capture.reached.keys() & names):
        expected, explained = capture.reached[name], capture.explained.get(name)
        if name in fused:
            passed.add(name)
            continue
        if expected is None or explained is None:
            problems.append(f"`{name}` is used outside of its layer's forward")
            continue
        types = expected.dtype, capture.coarsest
        allowed = max(TOLERANCE[dtype] for dtype in types) * expected.norm()
        allowed = allowed + 10 * max(torch.finfo(dtype).eps for dtype in types) * whole
        if (explained - expected.to(explained.dtype)).norm() > allowed + 1e-30:
            problems.append(
                f"`{name}`: single samples do not add up to its gradient. Its module draws random "
                "numbers or mixes samples, or the parameter is used elsewhere too"
            )
        else:
            passed.add(name)
    return problems, passed
