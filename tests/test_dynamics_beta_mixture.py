"""Mixtures that were drawn are found again, and their posterior never falls with the loss."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dynamics.beta_likelihood import raise_likelihood
from dynamics.beta_mixture import fit_beta_mixture
from dynamics.gaussian_mixture import fit_gaussian_mixture
from dynamics.label_noise import SEPARATES
from dynamics.loss_mixture import tabulate_mixture


def draw(n, rate, seed=0, low=(2, 12), high=(12, 3)):
    """Losses of a beta mixture, and which are of the high component."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < rate
    return np.where(wrong, rng.beta(*high, n), rng.beta(*low, n)), wrong


@pytest.mark.parametrize("rate", [0.3, 0.4, 0.5])
def test_a_mixture_that_was_drawn_is_found_again(rate):
    losses, wrong = draw(20_000, rate)
    mixture = fit_beta_mixture(losses)
    assert mixture.converged
    inside = (losses >= mixture.lowest) & (losses <= mixture.highest)
    assert mixture.n == inside.sum()
    assert mixture.weight[1] == pytest.approx(wrong[inside].mean(), abs=0.03)
    assert sum(mixture.weight) == pytest.approx(1)
    scaled = mixture.scale(losses)
    drawn = [scaled[inside & ~wrong].mean(), scaled[inside & wrong].mean()]
    assert mixture.means == pytest.approx(drawn, abs=0.03)
    assert mixture.noise_rate(losses) == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
def test_a_rate_that_would_be_wrong_comes_with_a_low_confidence(rate):
    losses, wrong = draw(5000, rate)
    mixture = fit_beta_mixture(losses)
    posterior = mixture.posterior(losses)
    confidence = np.maximum(posterior, 1 - posterior).mean()
    assert confidence < SEPARATES or abs(posterior.mean() - wrong.mean()) < 0.03


def test_component_1_has_the_higher_losses_and_the_scale_of_losses_does_not_matter():
    losses, _ = draw(1000, 0.2)
    mixture, scaled = fit_beta_mixture(losses), fit_beta_mixture(40 * losses + 3)
    assert mixture.means[0] < mixture.means[1]
    assert scaled.means == pytest.approx(mixture.means)
    assert scaled.weight == pytest.approx(mixture.weight)
    np.testing.assert_allclose(scaled.posterior(40 * losses + 3), mixture.posterior(losses))


KINDS = st.sampled_from(["mixture", "one group", "skewed", "few values", "outliers"])


@given(kind=KINDS, n=st.integers(20, 300), seed=st.integers(0, 10_000))
def test_the_posterior_is_a_probability_that_never_falls_with_the_loss(kind, n, seed):
    rng = np.random.default_rng(seed)
    losses = {
        "mixture": draw(n, rng.random(), seed)[0],
        "one group": rng.normal(2, 0.1, n),
        "skewed": rng.exponential(size=n) ** 3,
        "few values": np.append(rng.integers(0, 3, n - 2), [0.0, 1.0]),
        "outliers": np.append(rng.random(n - 2), [1e6, -1e6]),
    }[kind]
    mixture = fit_beta_mixture(losses)
    grid = np.concatenate([np.sort(losses), losses.max() + np.array([1.0, 1e9])])
    posterior = mixture.posterior(grid)
    assert (posterior >= 0).all()
    assert (posterior <= 1).all()
    assert (np.diff(posterior) >= -1e-12).all()
    assert 0 <= mixture.noise_rate(losses) <= 1


def test_missing_losses_have_no_posterior_and_do_not_count():
    losses, _ = draw(200, 0.3)
    holed = np.append(losses, [np.nan, np.inf])
    mixture = fit_beta_mixture(holed)
    assert mixture == fit_beta_mixture(losses)
    assert np.isnan(mixture.posterior(holed)[-2:]).all()
    assert mixture.noise_rate(holed) == pytest.approx(mixture.noise_rate(losses))


@pytest.mark.parametrize(
    ("losses", "n"),
    [(np.arange(19.0), 19), (np.ones(100), 100), (np.full(30, np.nan), 0), (np.empty(0), 0)],
    ids=["19 of them", "equal", "missing", "none"],
)
def test_too_few_or_equal_losses_are_refused(losses, n):
    with pytest.raises(ValueError, match=f"at least 20 samples .* got {n} finite"):
        fit_beta_mixture(losses)


def test_the_fit_tells_whether_it_converged_and_how():
    losses, _ = draw(2000, 0.3)
    whole, short = fit_beta_mixture(losses), fit_beta_mixture(losses, max_iterations=3)
    assert whole.converged
    assert not short.converged
    assert short.n_iterations == len(short.log_likelihood) == 3
    assert whole.log_likelihood[:3] == short.log_likelihood
    assert whole.log_likelihood[-1] > whole.log_likelihood[0]
    assert whole.n_iterations <= 200
    loose = fit_beta_mixture(losses, tolerance=1e-2)
    assert loose.n_iterations < whole.n_iterations


def test_the_binned_fit_of_many_losses_agrees_with_the_unbinned_one(monkeypatch):
    losses, _ = draw(6000, 0.3)
    binned = fit_beta_mixture(losses)
    monkeypatch.setattr("dynamics.beta_mixture._FIT_BINS", len(losses))
    exact = fit_beta_mixture(losses)
    assert binned.n == exact.n
    assert binned.alpha != exact.alpha  # two ways to the same answer
    assert binned.weight == pytest.approx(exact.weight, abs=2e-3)
    assert binned.means == pytest.approx(exact.means, abs=2e-3)
    np.testing.assert_allclose(binned.posterior(losses), exact.posterior(losses), atol=0.02)


@pytest.mark.parametrize("known", [False, True])
def test_a_tabulated_mixture_integrates_to_one(known):
    losses, wrong = draw(3000, 0.3)
    table = tabulate_mixture(
        fit_beta_mixture(losses), pd.Series(losses), pd.Series(wrong) if known else None, bins=40
    )
    assert table["left"].tolist()[1:] == table["right"].tolist()[:-1]
    groups = ["clean", "wrong label"] if known else ["all"]
    assert list(table) == ["left", "right", "component_0", "component_1", *groups]
    assert table[groups].to_numpy().sum() == pytest.approx(40)
    fitted = table[["component_0", "component_1"]].sum(axis=1)
    assert fitted.sum() == pytest.approx(40, rel=0.02)
    if known:
        assert table["wrong label"].sum() / 40 == pytest.approx(wrong.mean())


def test_a_sample_of_unknown_truth_is_not_drawn_as_a_wrong_label():
    losses, _ = draw(100, 0.3)
    flipped = pd.Series(False, index=range(60))  # the truth of the other 40 is not known
    table = tabulate_mixture(fit_beta_mixture(losses), pd.Series(losses), flipped)
    assert table["wrong label"].sum() == 0


def authors_posterior(losses):
    """Arazo et al.'s procedure step by step, as their code has it."""
    p5, p95 = np.percentile(losses, 5), np.percentile(losses, 95)
    smallest = p5 + 10e-6

    def scale(values):
        scaled = (values - smallest) / (p95 - smallest + 1e-6)
        scaled = np.where(scaled >= 1, 1 - 10e-4, scaled)
        return np.where(scaled <= 0, 10e-4, scaled)

    def weighted(values):
        return np.array([lam[k] * stats.beta.pdf(values, a[k], b[k]) for k in (0, 1)])

    x = np.clip(scale(losses[(losses >= p5) & (losses <= p95)]), 1e-4, 1 - 1e-4)
    a, b, lam = [1.0, 2.0], [2.0, 1.0], np.array([0.5, 0.5])
    for _ in range(10):
        r = np.maximum(weighted(x), 1e-12)
        r /= r.sum(axis=0)
        for k in (0, 1):
            mean = (r[k] * x).sum() / r[k].sum()
            variance = (r[k] * (x - mean) ** 2).sum() / r[k].sum()
            a[k] = mean * (mean * (1 - mean) / variance - 1)
            b[k] = a[k] * (1 - mean) / mean
        lam = r.sum(axis=1) / r.sum()
    clean, noisy = weighted(np.linspace(1e-12, 1 - 1e-12, 100))
    table = noisy / (clean + noisy + 1e-12)
    table[table.argmax() :] = table.max()
    return table[(100 * scale(losses)).astype(int)], lam


@pytest.mark.parametrize("rate", [0.2, 0.45])
def test_the_reference_is_the_authors_procedure(rate):
    losses, _ = draw(3000, rate)
    losses = 5 * losses + 0.3
    mixture = fit_beta_mixture(losses, kind="reference")
    posterior, weight = authors_posterior(losses)
    assert mixture.n_iterations == 10
    assert mixture.weight == pytest.approx(weight.tolist(), abs=1e-7)
    np.testing.assert_allclose(mixture.posterior(losses), posterior, atol=1e-7)
    assert mixture.scale(np.array([-9.0, 99.0])) == pytest.approx([1e-3, 1 - 1e-3])
    assert fit_beta_mixture(losses).scale(np.array([-9.0, 99.0])) == pytest.approx([1e-4, 1 - 1e-4])
    assert np.isnan(mixture.posterior(np.array([np.nan]))).all()


@given(n=st.integers(20, 300), seed=st.integers(0, 10_000), skew=st.sampled_from([0.3, 1, 4]))
def test_the_likelihood_never_falls_with_the_maximum_likelihood_step(n, seed, skew):
    rng = np.random.default_rng(seed)
    losses = draw(n, rng.random(), seed)[0] ** skew
    history = fit_beta_mixture(losses, kind="likelihood", max_iterations=30).log_likelihood
    assert (np.diff(history) >= -1e-9).all()


def test_a_single_component_is_found_as_scipy_finds_it():
    x = np.random.default_rng(0).beta(2.5, 7, 4000)
    ones, start = np.ones((1, len(x))), np.ones(1)
    a, b = start, start
    for _ in range(20):
        a, b = raise_likelihood(x, ones, a, b)
    expected = stats.beta.fit(x, floc=0, fscale=1)
    assert (a[0], b[0]) == pytest.approx(expected[:2], rel=1e-3)


def test_maximum_likelihood_recovers_the_mixture_and_is_the_likelier_one():
    losses, wrong = draw(20_000, 0.3)
    mixture = fit_beta_mixture(losses, kind="likelihood")
    assert mixture.converged
    assert mixture.noise_rate(losses) == pytest.approx(wrong.mean(), abs=0.02)
    for kind in ("moments", "reference"):
        assert mixture.log_likelihood[-1] > fit_beta_mixture(losses, kind=kind).log_likelihood[-1]


def test_a_gaussian_mixture_that_was_drawn_is_found_again():
    rng = np.random.default_rng(0)
    wrong = rng.random(20_000) < 0.4
    losses = np.where(wrong, rng.normal(3, 0.3, 20_000), rng.normal(1, 0.3, 20_000))
    mixture = fit_gaussian_mixture(losses)
    assert mixture.converged
    assert mixture.weight[1] == pytest.approx(0.35 / 0.9, abs=0.015)  # of those not trimmed
    unscaled = np.array(mixture.means) * (mixture.highest - mixture.lowest) + mixture.lowest
    assert unscaled == pytest.approx([1, 3], abs=0.1)  # tails are trimmed
    assert mixture.noise_rate(losses) == pytest.approx(wrong.mean(), abs=0.01)
    posterior = mixture.posterior(np.append(np.linspace(-5, 9, 100), np.nan))
    assert (np.diff(posterior[:-1]) >= 0).all()
    assert np.isnan(posterior[-1])
    with pytest.raises(ValueError, match="at least 20 samples"):
        fit_gaussian_mixture(losses[:5])
