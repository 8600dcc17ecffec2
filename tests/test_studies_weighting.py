"""The example-weighting schemes: exact checks against formulas, loops and hand-made batches."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from studies.lab.data import TensorData
from studies.lab.models import SmallCNN, build_mlp
from studies.lab.train import Recipe
from studies.weighting.bootstrapping import Bootstrapping, balance
from studies.weighting.class_ratio import class_ratio
from studies.weighting.data_weighting import DECAY, DataWeighting
from studies.weighting.emphasis import GCE_Q, derivative_manipulation, dm_emphasis, gce, mae, mse
from studies.weighting.importance import break_even, draw, variance_gain
from studies.weighting.incv import expected_noise, select
from studies.weighting.random_gaussian import random_gaussian
from studies.weighting.reweight import alignment, parameters_of, reweight, validation_gradient
from studies.weighting.scheme import Setup, StepView, to_mean_one
from studies.weighting.schemes import SCHEMES
from studies.weighting.selfie import Selfie, prediction_uncertainty
from studies.weighting.small_loss import CoTeaching, choose_small

N, C, SIZE = 24, 4, 8


def build_model(seed):
    torch.manual_seed(seed)
    return build_mlp(SIZE * SIZE, (16,), C)


def some_data(n, seed=0, n_classes=C):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, SIZE, SIZE, generator=generator)
    return TensorData(images, torch.randint(n_classes, (n,), generator=generator))


def setup_of(**changed):
    told = {
        "data": some_data(N),
        "validation": some_data(8, seed=1),
        "n_classes": C,
        "noise_ratio": 0.25,
        "warm_up": 3,
        "recipe": Recipe(epochs=1, lr=0.1, batch_size=N),
        "build_model": build_model,
        "record": lambda name, value, block: None,
    }
    return Setup(**told | changed)


def view_of(setup, model, *, rows=None, epoch=9, logits=None):
    rows = torch.arange(len(setup.data)) if rows is None else rows
    images = setup.data.images[rows]
    logits = model(images) if logits is None else logits
    return StepView(epoch, rows, images, setup.data.labels[rows], logits, model)


def logits_of(scale, n=50, n_classes=10):
    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(n_classes, (n,), generator=generator)


def pull(scheme, logits, labels):
    """‖∂(w_i ℓ_i)/∂z_i‖₁ of a scheme, and the p of each sample."""
    view = StepView(0, torch.arange(len(labels)), logits, labels, logits, torch.nn.Identity())
    (grad,) = torch.autograd.grad((scheme.weights(view) * scheme.losses(view)).sum(), logits)
    return grad, view.p_true


# Emphasis


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize(
    ("scheme", "loss", "length"),
    [
        (SCHEMES["uniform"], lambda p: -p.log(), lambda p: 2 * (1 - p)),
        (mae, lambda p: 1 - p, lambda p: 2 * p * (1 - p)),
        (mse, lambda p: (1 - p) ** 2, lambda p: 4 * p * (1 - p) ** 2),
        (
            gce,
            lambda p: (1 - p**GCE_Q) / GCE_Q,
            lambda p: 2 * p**GCE_Q * (1 - p),
        ),
    ],
    ids=["ce", "mae", "mse", "gce"],
)
def test_a_weight_on_cross_entropy_is_the_gradient_of_the_loss_itself(scheme, loss, length, scale):
    logits, labels = logits_of(scale)
    grad, p = pull(scheme(setup_of()), logits, labels)
    own = loss(logits.softmax(1).gather(1, labels[:, None]).squeeze(1)).sum()
    torch.testing.assert_close(grad, torch.autograd.grad(own, logits)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(grad.abs().sum(1), length(p), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mode", "variance"), [(0.0, 2.0), (0.5, 8.0), (1.0, 8.0), (2.0, 12.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivative_manipulation_pulls_with_its_emphasis_whatever_the_logits(mode, variance, dtype):
    logits, labels = logits_of(8.0)
    logits = logits.detach().to(dtype).requires_grad_()
    grad, p = pull(derivative_manipulation(mode, variance), logits, labels)
    from scipy.integrate import quad

    area = quad(lambda x: math.exp(variance * x**mode * (1 - x)), 0, 1)[0]
    expected = dm_emphasis(p, mode, variance) / area
    torch.testing.assert_close(grad.abs().sum(1), expected, rtol=1e-6, atol=1e-6)
    assert p.max() > 0.999
    direction = logits.detach().softmax(1) - F.one_hot(labels, 10)
    cosine = F.cosine_similarity(grad.double(), direction.double())
    assert cosine[p < 0.99].min() > 1 - 1e-6


def test_the_emphasis_of_derivative_manipulation_is_highest_at_its_mode():
    p = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    for mode in (0.5, 1.0, 2.0):
        assert p[dm_emphasis(p, mode, 8.0).argmax()].item() == pytest.approx(
            mode / (mode + 1), abs=1e-4
        )
    assert dm_emphasis(p, 0.5, 0.0).eq(1).all()


# Uniform, class ratio, random


def test_class_ratio_gives_every_class_the_same_total():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 2 + [3])
    setup = setup_of(data=TensorData(torch.zeros(12, 1, SIZE, SIZE), labels))
    weights = class_ratio(setup).weights(view_of(setup, build_model(0)))
    assert weights.mean() == 1
    assert [weights[labels == c].sum().item() for c in range(4)] == pytest.approx([3.0] * 4)


def test_random_weights_leave_half_out_and_have_mean_one():
    setup = setup_of(data=some_data(4000))
    weights = random_gaussian(setup).weights(view_of(setup, build_model(0)))
    assert weights.mean() == pytest.approx(1, abs=1e-5)
    assert (weights == 0).float().mean() == pytest.approx(0.5, abs=0.03)
    ratio = weights.square().mean() / weights.mean() ** 2
    assert ratio == pytest.approx(math.pi, rel=0.05)  # E[g₊²]/E[g₊]² = (1/2)/(1/2π)


@given(st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=20))
def test_weights_are_normalised_or_all_zero(values):
    weights = to_mean_one(torch.tensor(values))
    total = torch.tensor(values).sum()
    if total > 1e-30:
        assert weights.mean() == pytest.approx(1, rel=1e-4)
    elif total == 0:
        assert weights.eq(0).all()


# Learning to reweight, and data weighting


def lookahead_weights(model, batch, validation):
    """Algorithm 1 of Ren et al. word for word: a differentiable step, and its derivative in ε."""
    theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    eps = torch.zeros(len(batch), requires_grad=True)
    losses = F.cross_entropy(
        functional_call(model, theta, batch.images), batch.labels, reduction="none"
    )
    grads = torch.autograd.grad((eps * losses).sum(), tuple(theta.values()), create_graph=True)
    ahead = {name: p - g for (name, p), g in zip(theta.items(), grads, strict=True)}
    loss = F.cross_entropy(functional_call(model, ahead, validation.images), validation.labels)
    (slope,) = torch.autograd.grad(loss, eps)
    weights = (-slope).clamp(min=0)
    return weights / weights.sum()


def looped_dots(model, batch, validation):
    """∇ℓ_i · ∇L_val by a backward pass for each sample."""

    def flat(loss):
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, tuple(model.parameters()))]
        )

    clean = flat(F.cross_entropy(model(validation.images), validation.labels))
    rows = range(len(batch))
    return torch.stack(
        [flat(F.cross_entropy(model(batch.images[[i]]), batch.labels[[i]])) @ clean for i in rows]
    )


@pytest.fixture(params=["mlp", "cnn"])
def network(request):
    def build(seed):
        torch.manual_seed(seed)
        return SmallCNN(1, SIZE, C, 4) if request.param == "cnn" else build_model(seed)

    return build


def test_reweighting_is_rectified_alignment_and_the_lookahead_step(network):
    setup = setup_of(build_model=network)
    model = network(5)
    weights = reweight(setup).weights(view_of(setup, model)) / N
    dots = looped_dots(model, setup.data, setup.validation)
    rectified = dots.clamp(min=0)
    torch.testing.assert_close(weights, rectified / rectified.sum(), rtol=0, atol=1e-5)
    ahead = lookahead_weights(model, setup.data, setup.validation)
    torch.testing.assert_close(weights, ahead, rtol=0, atol=1e-5)
    assert 0 < (weights == 0).sum() < N


def test_alignment_is_each_samples_own_dot_product_with_its_sign(network):
    setup, model = setup_of(), network(6)
    theta = parameters_of(model)
    direction = validation_gradient(network(0), theta, setup.validation)
    dots = alignment(network(0), theta, setup.data, direction)
    expected = looped_dots(model, setup.data, setup.validation)
    torch.testing.assert_close(dots, expected, rtol=1e-5, atol=1e-5)
    assert dots.min() < 0 < dots.max()


def test_reweighting_without_any_aligned_sample_weighs_nothing():
    batch = some_data(1)
    opposite = TensorData(batch.images, (batch.labels + 1) % C)
    setup, model = setup_of(data=batch, validation=opposite), build_model(2)
    for _ in range(50):  # towards p = (1/2, 1/2): there the two gradients point apart
        both = F.cross_entropy(model(batch.images), batch.labels)
        both = both + F.cross_entropy(model(batch.images), opposite.labels)
        grads = torch.autograd.grad(both, tuple(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.1 * g
    assert reweight(setup).weights(view_of(setup, model)).eq(0).all()


def test_data_weighting_follows_its_rule_and_remembers():
    setup, model = setup_of(), build_model(4)
    state = DataWeighting(setup)
    phi = torch.ones(N)
    for _ in range(3):
        theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
        leaf = phi.clone().requires_grad_()
        losses = F.cross_entropy(
            functional_call(model, theta, setup.data.images), setup.data.labels, reduction="none"
        )
        step = torch.autograd.grad(
            (leaf / N * losses).sum(), tuple(theta.values()), create_graph=True
        )
        ahead = {k: p - 0.1 * g for (k, p), g in zip(theta.items(), step, strict=True)}
        loss = F.cross_entropy(
            functional_call(model, ahead, setup.validation.images), setup.validation.labels
        )
        slope = torch.autograd.grad(loss, leaf)[0] * N  # θ′ of the paper has Σ φ_i, here Σ φ_i/N
        phi = (phi / DECAY - slope).clamp(min=1e-5)
        weights = state.weights(view_of(setup, model))
        torch.testing.assert_close(state.phi, phi, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights, phi / phi.mean(), rtol=1e-4, atol=1e-4)


# Small loss


def test_small_loss_keeps_the_smallest_of_those_allowed():
    losses = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.5])
    allowed = torch.tensor([True, True, True, True, True, False])
    weights = choose_small(losses, 0.6, allowed)
    assert weights.tolist() == [0, 2, 0, 2, 2, 0]  # 3 of 5, each 6/3
    assert choose_small(losses, 1.0, ~allowed).tolist() == [0, 0, 0, 0, 0, 6]
    assert choose_small(losses, 0.5, torch.zeros(6, dtype=torch.bool)).eq(0).all()


def test_each_network_is_trained_on_the_choice_of_the_other():
    setup, model = setup_of(), build_model(0)
    state = CoTeaching(setup, 0.25)
    peer = build_model(setup.recipe.seed + 1000)
    data = setup.data
    theirs = F.cross_entropy(peer(data.images), data.labels, reduction="none")
    ours = F.cross_entropy(model(data.images), data.labels, reduction="none")
    weights = state.weights(view_of(setup, model, epoch=2))
    chosen = theirs.argsort()[:18]
    assert set(weights.nonzero().flatten().tolist()) == set(chosen.tolist())
    assert weights.sum() == pytest.approx(N)
    small = ours.argsort()[:18]
    grads = torch.autograd.grad(theirs[small].mean(), tuple(peer.parameters()))
    for updated, p, g in zip(state.peer.parameters(), peer.parameters(), grads, strict=True):
        torch.testing.assert_close(updated, p - 0.1 * g)


def test_co_teaching_keeps_fewer_as_the_warm_up_goes_on():
    setup, model = setup_of(), build_model(0)
    kept = [
        int((CoTeaching(setup, 0.25).weights(view_of(setup, model, epoch=e)) > 0).sum())
        for e in range(5)
    ]
    assert kept == [22, 20, 18, 18, 18]


# INCV


@pytest.mark.parametrize(("ratio", "noise"), [(0.0, 0.0), (0.2, 0.0069), (0.5, 0.1), (0.8, 0.64)])
def test_noise_left_among_the_selected_is_one_less_label_precision(ratio, noise):
    assert expected_noise(ratio, n_classes=10) == pytest.approx(noise, abs=5e-4)


def test_incv_selects_what_networks_agree_on_and_never_what_it_discarded():
    rng = np.random.default_rng(0)
    true = rng.integers(0, C, 400)
    images = torch.zeros(400, 1, SIZE, SIZE)
    images.view(400, -1)[torch.arange(400), torch.as_tensor(true)] = 4.0
    images += 0.1 * torch.as_tensor(rng.normal(size=images.shape), dtype=torch.float32)
    noisy = true.copy()
    noisy[:120] = (noisy[:120] + rng.integers(1, C, 120)) % C
    said = []
    setup = setup_of(
        data=TensorData(images, torch.as_tensor(noisy)),
        recipe=Recipe(epochs=1, lr=0.05, batch_size=32),
        record=lambda name, value, block: said.append((name, block)),
    )
    selection = select(setup)
    clean = torch.as_tensor(noisy == true)
    assert clean[selection.selected].float().mean() > 0.95
    assert selection.selected[clean].float().mean() > 0.7
    assert not (selection.selected & selection.discarded).any()
    assert selection.noise_ratio > 0
    assert said[0] == ("selected_fraction", "round 1")


# SELFIE


def test_uncertainty_is_zero_for_a_unanimous_history_only():
    history = torch.zeros(4, 15, dtype=torch.long)
    history[1, 3] = 7
    history[2, -1] = -1
    history[3] = torch.arange(15) % 10
    uncertainty, predicted = prediction_uncertainty(history, 10)
    assert uncertainty[0] == 0
    assert uncertainty[1].item() == pytest.approx(0.1064, abs=1e-4)
    assert uncertainty[2] == 1
    assert 0.9 < uncertainty[3] < 1
    assert predicted[:2].tolist() == [0, 0]


def test_selfie_refurbishes_and_keeps_and_leaves_the_rest_out():
    data = TensorData(torch.zeros(4, 1, SIZE, SIZE), torch.tensor([0, 0, 0, 0]))
    setup = setup_of(data=data, noise_ratio=0.5, warm_up=2)
    state = Selfie(setup)
    steady = [5.0, 0.0, 0.0, 0.0]
    one, two = [0.0, 6.0, 0.0, 0.0], [0.0, 0.0, 7.0, 0.0]
    seen = [
        torch.tensor([steady, [4.0, 0, 0, 0], one, one]),
        torch.tensor([steady, [4.0, 0, 0, 0], one, two]),
        torch.tensor([steady, [4.0, 0, 0, 0], one, two[::-1]]),
    ]
    model = build_model(0)
    for epoch, logits in enumerate(seen):
        view = view_of(setup, model, epoch=epoch, logits=logits)
        losses, weights = state.losses(view), state.weights(view)
        if epoch < 2:
            assert weights.eq(1).all()
            assert losses.equal(view.losses)
    # samples 0, 1: small loss; 2: unanimous for class 1; 3: neither
    assert state.refurbished.tolist() == [0, 0, 1, -1]
    torch.testing.assert_close(weights, torch.tensor([4 / 3, 4 / 3, 4 / 3, 0]))
    torch.testing.assert_close(losses[2], F.cross_entropy(seen[2][2:3], torch.tensor([1])))
    all_zero = torch.tensor([steady] * 4)
    for epoch in (3, 4):
        state.losses(view_of(setup, model, epoch=epoch, logits=all_zero))
    assert state.refurbished.tolist() == [0, 0, 1, 0]  # what was refurbished keeps its label


# Bootstrapping


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_bootstrapping_moves_the_target_to_the_prediction(target):
    setup, model = setup_of(), build_model(1)
    state = Bootstrapping(setup, target)
    state.suspicion = torch.linspace(0, 1, N)
    view = view_of(setup, model)
    h = view.logits.softmax(1)
    z = F.one_hot(h.argmax(1), C).float() if target == "hard" else h.detach()
    y = F.one_hot(view.labels, C)
    w = state.suspicion[:, None]
    expected = -((1 - w) * y * h.log() + w * z * h.log()).sum(1) + balance(view.logits)
    torch.testing.assert_close(state.losses(view), expected)
    assert state.losses(view_of(setup, model, epoch=1)).equal(view.losses)  # warm-up
    state.suspicion = torch.zeros(N)
    (grad,) = torch.autograd.grad(state.losses(view).sum() - N * balance(view.logits), view.logits)
    torch.testing.assert_close(grad, (h - y).detach(), atol=1e-6, rtol=1e-5)


def test_no_penalty_for_a_balanced_batch():
    assert balance(10 * torch.eye(C)).item() == pytest.approx(0, abs=1e-6)
    assert balance(10 * torch.eye(C)[:1].expand(C, C)).item() > 1


def test_mixing_takes_both_images_and_both_labels_in_the_same_shares():
    setup, model = setup_of(), build_model(1)
    state = Bootstrapping(setup, "hard")
    mixed = state.mix_images(setup.data.images)
    share, partner = state.share, state.partner
    assert 0.5 <= share < 0.8
    assert sorted(partner.tolist()) == list(range(N))
    expected = share * setup.data.images + (1 - share) * setup.data.images[partner]
    torch.testing.assert_close(mixed, expected)
    view = view_of(setup, model, epoch=0)  # in the warm-up: plain mixup
    own = F.cross_entropy(view.logits, view.labels, reduction="none")
    other = F.cross_entropy(view.logits, view.labels[partner], reduction="none")
    torch.testing.assert_close(state.mixed_losses(view), share * own + (1 - share) * other)


def test_high_losses_are_suspect_after_the_warm_up():
    setup = setup_of(data=some_data(200), warm_up=1)
    model = build_model(0)
    state = Bootstrapping(setup, "hard")
    state.before_epoch(0, model)
    assert state.suspicion.eq(0).all()
    state.before_epoch(1, model)
    with torch.no_grad():
        losses = F.cross_entropy(model(setup.data.images), setup.data.labels, reduction="none")
    order = losses.argsort()
    assert (state.suspicion[order].diff() >= 0).all()  # monotone in the loss
    assert state.suspicion.min() >= 1e-4
    assert state.suspicion.max() <= 1 - 1e-4


# Importance sampling


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=50))
def test_tau_is_the_coefficient_of_variation_of_the_scores(scores):
    scores = np.array(scores)
    expected = np.sqrt(1 + (scores.std() / scores.mean()) ** 2)
    assert variance_gain(torch.as_tensor(scores)) == pytest.approx(expected, abs=1e-9)


def test_sampling_pays_from_tau_two_for_three_times_the_batch():
    assert break_even(384, 128) == 2
    assert break_even(640, 128) == pytest.approx(8 / 3)
    assert variance_gain(torch.zeros(5)) == 1


def test_weighted_draws_are_unbiased_for_the_mean_of_the_scored():
    scores = torch.tensor([0.1, 1.0, 2.0, 0.5, 4.0])
    values = torch.tensor([3.0, -1.0, 2.0, 8.0, 0.5])
    places, weights = draw(scores, 200_000, torch.Generator().manual_seed(0))
    assert (weights * values[places]).mean() == pytest.approx(values.mean().item(), abs=0.05)
    assert weights.mean() == pytest.approx(1, abs=0.02)


def test_scores_of_zero_are_drawn_without_a_division_by_zero():
    _, weights = draw(torch.zeros(4), 8, torch.Generator().manual_seed(0))
    assert weights.isfinite().all()
