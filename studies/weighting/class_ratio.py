"""Weights by class frequency, what Byrd and Lipton ask about: does it last?"""

import torch
from torch import Tensor

from studies.weighting.scheme import Scheme, Setup, StepView


def class_ratio(setup: Setup) -> Scheme:
    """Each sample counts w_c = N / (C · N_c): every class has the same total weight.

    Byrd and Lipton find that such weights decide what is learned early and lose their effect on
    predictions once the training set is fitted. Under balanced classes this is plain training.

    Args:
        setup: The given labels are counted.

    Returns:
        The scheme.

    Reference:
        Byrd and Lipton, ICML 2019, Sec. 3.
    """
    counts = torch.bincount(setup.data.labels, minlength=setup.n_classes).clamp(min=1)
    of_class = len(setup.data) / (setup.n_classes * counts)

    def weights(view: StepView) -> Tensor:
        return of_class[view.labels]

    return Scheme(weights)
