"""A log of 10 samples over 5 epochs whose every statistic is known, in the formats of other tools.

Logits are multiples of ln 2, so that probabilities are plain fractions. With three classes and the
label's logit first:

    W2  (0, 2, 0) ln 2   p = 1/6   margin −2 ln 2   wrong
    W1  (0, 1, 0) ln 2   p = 1/4   margin −1 ln 2   wrong
    T   (0, 0, 0)        p = 1/3   margin  0        a tie of all classes: class 0 is predicted
    R1  (1, 0, 0) ln 2   p = 1/2   margin +1 ln 2   right
    R2  (2, 0, 0) ln 2   p = 2/3   margin +2 ln 2   right
"""

import csv
import json
from math import log, sqrt

import numpy as np

LN2 = log(2)
POWERS = {"W2": (0, 2), "W1": (0, 1), "T": (0, 0), "R1": (1, 0), "R2": (2, 0)}
P_TRUE = {"W2": 1 / 6, "W1": 1 / 4, "T": 1 / 3, "R1": 1 / 2, "R2": 2 / 3}

LABELS = {"a": 0, "b": 1, "c": 2, "d": 0, "e": 0, "f": 1, "g": 2, "h": 0, "i": 1, "j": 2}

LOG = {
    "a": "W1 W1 R1 R1 R2",  # learned at epoch 2 and kept
    "b": "R1 R1 R2 R2 R2",  # right from the start
    "c": "W1 W1 W1 W1 W1",  # never learned
    "d": "R1 W1 R1 W1 R1",  # forgotten twice
    "e": "T T T T T",  # ties, and the label is the first of them: right
    "f": "T T T T T",  # ties, and the label is not: never learned
    "g": "R1 - W1 - R1",  # not seen in epochs 1 and 3
    "h": "- - - W1 R1",  # comes late
    "i": "W2 W1 R1+W1 R1 R1",  # seen twice in epoch 2: the second is a repeat
    "j": "R2 W2 W2 R1 W1",
}

# By hand from the two tables above. Means and population variances are over the presentations
# that are not repeats:
#   a  p (3+3+6+6+8)/12/5 = 26/60          margins (−1−1+1+1+2)/5 = 2/5
#   b  p (1/2·2 + 2/3·3)/5 = 3/5           var (2·.1² + 3·(1/15)²)/5 = 1/150
#   d  p (3/2 + 2/4)/5 = 2/5               var (3·.1² + 2·.15²)/5 = .015
#   g  p (1/2 + 1/4 + 1/2)/3 = 5/12        var of (2, −4, 2)/24·… = (2·(1/12)² + (1/6)²)/3 = 1/72
#   h  p (1/4 + 1/2)/2 = 3/8               var (1/8)²
#   i  p (2+3+6+6+6)/12/5 = 23/60          margins (−2−1+1+1+1)/5 = 0
#   j  p (8+2+2+6+3)/12/5 = 21/60          margins (2−2−2+1−1)/5 = −2/5
CONFIDENCE = {
    "a": 13 / 30,
    "b": 3 / 5,
    "c": 1 / 4,
    "d": 2 / 5,
    "e": 1 / 3,
    "f": 1 / 3,
    "g": 5 / 12,
    "h": 3 / 8,
    "i": 23 / 60,
    "j": 7 / 20,
}
VARIABILITY = {"b": sqrt(1 / 150), "c": 0, "d": sqrt(0.015), "e": 0, "f": 0}
VARIABILITY |= {"g": sqrt(1 / 72), "h": 1 / 8}
AUM_IN_LN2 = {"a": 2 / 5, "b": 8 / 5, "c": -1, "d": 1 / 5, "e": 0, "f": 0}
AUM_IN_LN2 |= {"g": 1 / 3, "h": 0, "i": 0, "j": -2 / 5}
N_CORRECT = {"a": 3, "b": 5, "c": 0, "d": 3, "e": 5, "f": 0, "g": 2, "h": 1, "i": 3, "j": 2}
N_FORGOTTEN = {"a": 0, "b": 0, "c": 0, "d": 2, "e": 0, "f": 0, "g": 1, "h": 0, "i": 0, "j": 2}
FIRST_LEARNED = {"a": 2, "b": 0, "d": 0, "e": 0, "g": 0, "h": 4, "i": 2, "j": 0}  # c, f: never
N_OBSERVED = dict.fromkeys("abcdefij", 5) | {"g": 3, "h": 2}


def presentations():
    """(epoch, name, kind) of every row, in the order in which training would have met them."""
    for epoch in range(5):
        for name, kinds in LOG.items():
            for kind in kinds.split()[epoch].split("+"):
                if kind != "-":
                    yield epoch, name, kind


def logits(name, kind):
    own, other = POWERS[kind]
    label = LABELS[name]
    z = [0.0, 0.0, 0.0]
    z[label] = own * LN2
    z[(label + 1) % 3] = other * LN2
    return z


def predicted(name, kind):
    return int(np.argmax(logits(name, kind)))


def write_cartography(folder, *, name_of=lambda name: name):
    """`training_dynamics/dynamics_epoch_X.jsonl`, as github.com/allenai/cartography writes them."""
    place = folder / "training_dynamics"
    place.mkdir(parents=True)
    lines = {epoch: [] for epoch in range(5)}
    for epoch, name, kind in presentations():
        line = {"guid": name_of(name), f"logits_epoch_{epoch}": logits(name, kind)}
        lines[epoch].append(json.dumps(line | {"gold": LABELS[name]}))
    for epoch, texts in lines.items():
        (place / f"dynamics_epoch_{epoch}.jsonl").write_text("\n".join(texts) + "\n")
    return folder


def aum_records(*, swapped=False):
    """Rows of `full_aum_records.csv`; the two releases of `aum` swap two pairs of columns."""
    seen, sums, rows = {}, {}, []
    for _, name, kind in presentations():
        z, label = logits(name, kind), LABELS[name]
        rest = [x if j != label else -np.inf for j, x in enumerate(z)]
        other = int(np.argmax(rest))
        margin = z[label] - z[other]
        seen[name] = seen.get(name, 0) + 1
        sums[name] = sums.get(name, 0) + margin
        classes, values = (label, other), (z[label], z[other])
        first, second = (values, classes) if swapped else (classes, values)
        pairs = {"target_logit": first[0], "target_val": second[0]}
        pairs |= {"other_logit": first[1], "other_val": second[1]}
        row = {"sample_id": name, "num_measurements": seen[name], **pairs, "margin": margin}
        rows.append(row | {"aum": sums[name] / seen[name]})
    return sorted(rows, key=lambda row: (row["sample_id"], row["num_measurements"]))


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def plain_rows():
    """The same log as a plain table: one row per presentation."""
    return [
        {
            "sample_id": name,
            "epoch": epoch,
            "loss": -log(P_TRUE[kind]),
            "margin": (POWERS[kind][0] - POWERS[kind][1]) * LN2,
            "p_true": P_TRUE[kind],
            "predicted": predicted(name, kind),
            "label": LABELS[name],
        }
        for epoch, name, kind in presentations()
    ]


def forgetting_arrays():
    """`correct`, `loss` and `margin`, shape (5, 10); NaN where a sample was not seen."""
    names = sorted(LOG)
    arrays = {key: np.full((5, 10), np.nan) for key in ("correct", "loss", "margin")}
    for epoch, name, kind in reversed(list(presentations())):  # the first of two is kept
        at = epoch, names.index(name)
        arrays["correct"][at] = predicted(name, kind) == LABELS[name]
        arrays["loss"][at] = -log(P_TRUE[kind])
        arrays["margin"][at] = (POWERS[kind][0] - POWERS[kind][1]) * LN2
    return arrays | {"sample_id": np.array(names)}
