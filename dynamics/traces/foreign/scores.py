"""What the logits of a batch say about each sample, by the definitions of `probes.SampleLoss`."""

import numpy as np


def score_logits(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Loss and scores of each sample's logits, computed in double precision.

    With z the logits, y the label and p = softmax(z):

    - `loss` = −log p_y, in nats,
    - `margin` = z_y − max_{j≠y} z_j (Pleiss et al., NeurIPS 2020, Sec. 3),
    - `p_true` = p_y (Swayamdipta et al., EMNLP 2020, Sec. 2),
    - `el2n` = ‖p − e_y‖₂ (Paul et al., NeurIPS 2021, Sec. 2),
    - `predicted` = argmax z, the first of ties, and `correct` = whether it is y. At a tie between
      y and an earlier class the margin is 0 and the sample is not correct.

    Args:
        logits: Shape (N, C), C ≥ 2.
        labels: Class of each sample, from 0 to C − 1, shape (N,).

    Returns:
        The columns above, each of shape (N,). Where a logit is not finite, neither are the values
        that rest on it.
    """
    rows = np.arange(len(labels))
    logits = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite logits: the values are NaN, and flagged as such
        shifted = logits - logits.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        total = exponentials.sum(axis=1)
        probabilities = exponentials / total[:, None]
        others = logits.copy()
        others[rows, labels] = -np.inf
        margin = logits[rows, labels] - others.max(axis=1)
    residual = probabilities.copy()
    residual[rows, labels] -= 1
    predicted = logits.argmax(axis=1)
    return {
        "loss": np.log(total) - shifted[rows, labels],
        "margin": margin,
        "p_true": probabilities[rows, labels],
        "el2n": np.sqrt((residual**2).sum(axis=1)),
        "predicted": predicted.astype(np.int32),
        "correct": (predicted == labels).astype(np.int8),
    }
