"""Scores of the papers and who is hardest, on the log whose statistics are known by hand."""

import numpy as np
import pandas as pd
import pytest

from dynamics import import_log
from dynamics.difficulty import (
    DEFINITIONS,
    LearningCounts,
    average_scores,
    count_learning,
    rank_agreement,
    rank_hardest,
    score_difficulty,
)
from dynamics.statistics import rank_correlation
from dynamics.summary import summarise_samples
from tests import foreign_logs as log


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    place = tmp_path_factory.mktemp("log")
    run = import_log(log.write_cartography(place / "log"), place / "run")
    return summarise_samples(run).set_index("key").sort_index()


def test_each_score_has_its_papers_name_and_value(summary):
    scores = score_difficulty(summary)
    forgetting = log.N_FORGOTTEN | {"c": np.inf, "f": np.inf}  # never learned
    assert scores["forgetting"].to_dict() == forgetting
    assert scores["confidence"].to_dict() == pytest.approx(log.CONFIDENCE, abs=1e-7)
    correctness = {name: log.N_CORRECT[name] / log.N_OBSERVED[name] for name in log.LOG}
    assert scores["correctness"].to_dict() == pytest.approx(correctness)
    assert scores.loc["c", "aum"] == pytest.approx(-log.LN2, abs=1e-7)
    assert scores.loc["c", "el2n"] == pytest.approx(np.sqrt(14) / 4, abs=1e-7)


def test_samples_are_counted_as_never_learned_kept_or_forgotten(summary):
    counts = count_learning(summary)
    # never: c, f; kept: a, b, e, h, i; forgotten: d, g, j
    assert counts == LearningCounts(n=10, n_never_learned=2, n_kept=5, n_forgotten=3)


def test_the_hardest_come_first_by_what_was_recorded(summary):
    by_aum = rank_hardest(summary)
    assert by_aum.name == "aum"
    assert by_aum.index[:2].tolist() == ["c", "j"]
    by_confidence = rank_hardest(summary.assign(aum=np.nan))
    assert by_confidence.name == "confidence"
    assert by_confidence.index[0] == "c"
    by_forgetting = rank_hardest(summary.assign(aum=np.nan, mean_p_true=np.nan))
    assert by_forgetting.name == "forgetting"
    assert set(by_forgetting.index[:2]) == {"c", "f"}
    assert by_forgetting.index[2:5].tolist() == ["j", "d", "g"]  # 2/5 right, then 3/5, then once


def test_where_nothing_says_right_or_wrong_nothing_is_counted(summary):
    unknown = summary.assign(first_learned=np.nan, n_correct=0, n_forgotten=0)
    assert count_learning(unknown) is None
    assert score_difficulty(unknown)[["forgetting", "correctness"]].isna().all(axis=None)
    empty = unknown.assign(aum=np.nan, mean_p_true=np.nan)
    assert rank_hardest(empty) is None


def test_samples_of_the_roster_that_were_never_seen_are_left_out(summary):
    unseen = pd.DataFrame({"n_observed": [np.nan]}, index=pd.Index(["z"], name="key"))
    whole = pd.concat([summary, unseen])
    assert count_learning(whole).n == 10
    assert score_difficulty(whole).loc["z"].isna().all()


def test_each_score_has_a_versioned_definition(summary):
    scores = score_difficulty(summary)
    assert scores.attrs["definitions"] == DEFINITIONS
    assert list(DEFINITIONS) == list(scores)
    assert all(text.split(": ")[0].isdigit() for text in DEFINITIONS.values())


def test_grand_is_the_mean_gradient_norm(summary):
    scores = score_difficulty(summary.assign(mean_grad_norm=np.arange(len(summary))))
    assert scores["grand"].tolist() == list(range(len(summary)))


def test_agreement_is_one_where_scores_order_the_samples_alike():
    hard = np.arange(8.0)
    scores = pd.DataFrame(
        {"el2n": hard, "grand": hard**2, "aum": -hard, "confidence": 1 - hard / 9}
    )
    table = rank_agreement(scores)
    assert len(table) == 6
    assert table["correlation"].to_numpy() == pytest.approx(np.ones(6))
    assert (table["n"] == 8).all()
    against = rank_agreement(scores.assign(aum=hard))
    assert against.loc[against["b"] == "aum", "correlation"].tolist() == pytest.approx([-1, -1])


def test_a_sample_never_learned_is_ranked_as_the_most_forgotten():
    rng = np.random.default_rng(0)
    forgetting, el2n = np.append(rng.integers(0, 5, 20), [np.inf, np.inf]), rng.random(22)
    scores = pd.DataFrame({"forgetting": forgetting, "el2n": el2n, "correctness": 1.0})
    found = rank_agreement(scores)
    assert found[["a", "b"]].to_numpy().tolist() == [["forgetting", "el2n"]]  # correctness is flat
    expected = rank_correlation(np.where(np.isinf(forgetting), 99, forgetting), el2n)
    assert found.loc[0, ["correlation", "low", "high"]].tolist() == pytest.approx(
        [expected.value, expected.low, expected.high]
    )
    assert found.loc[0, "n"] == 22


def test_scores_are_averaged_over_runs():
    a = pd.DataFrame({"el2n": [1.0, 2.0], "forgetting": [0, np.inf]}, index=[3, 4])
    b = pd.DataFrame({"el2n": [np.nan, 4.0], "forgetting": [3, 1]}, index=[3, 4])
    mean = average_scores([a, b])
    assert mean["el2n"].tolist() == [1, 3]
    assert mean["forgetting"].tolist() == [1.5, np.inf]
    with pytest.raises(ValueError, match="one run or more"):
        average_scores([])
