"""Random weights: the control that Ren et al. found to be a strong one."""

import torch
from torch import Tensor

from studies.weighting.scheme import Scheme, Setup, StepView, to_mean_one


def random_gaussian(setup: Setup) -> Scheme:
    """Each sample of a step counts w_i ∝ max(g_i, 0), g_i standard normal, drawn anew each step.

    Half of the batch is left out and the rest is weighted unevenly, knowing nothing: what a
    weighting scheme gains over this is what its knowledge is worth.

    Args:
        setup: The recipe's seed is used.

    Returns:
        The scheme.

    Reference:
        Ren et al., ICML 2018, Sec. 4 (“Random”).
    """
    generator = torch.Generator().manual_seed(setup.recipe.seed + 1)

    def weights(view: StepView) -> Tensor:
        return to_mean_one(torch.randn(len(view.rows), generator=generator).clamp(min=0))

    return Scheme(weights)
