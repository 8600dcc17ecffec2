"""The outputs' Fisher information: columns and draws make it up, and nothing overflows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from reference import output_fisher as reference_fisher

from probes.likelihood import output_fisher

LIKELIHOODS = ("softmax", "bernoulli", "gaussian")
DTYPES = (torch.float32, torch.float64)
PRECISION = {torch.float32: 3e-6, torch.float64: 1e-13}


def outputs(largest, min_dims=2, max_dims=3):
    """Arrays (N, C) or (N, T, C), in float64."""
    shapes = array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=1, max_side=4)
    values = st.floats(-largest, largest, allow_nan=False, width=32)
    return arrays(np.float64, shapes, elements=values).map(torch.from_numpy)


def dense(z, likelihood):
    """H of each sample over all of its outputs, position by position, in float64."""
    size = z.shape[-1] if likelihood == "softmax" else 1
    return torch.stack(
        [
            torch.block_diag(*(reference_fisher(row, likelihood) for row in one.reshape(-1, size)))
            for one in z.double()
        ]
    )


def summed_outer(columns, like):
    total = torch.zeros(len(like), like[0].numel(), like[0].numel(), dtype=torch.float64)
    for column in columns:
        assert column.shape == like.shape
        flat = column.double().flatten(1)
        total += flat.unsqueeze(2) * flat.unsqueeze(1)
    return total


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(z=outputs(12))
@settings(max_examples=25)
def test_outer_products_of_the_columns_add_up_to_h(likelihood, dtype, z):
    z = z.to(dtype)
    columns = output_fisher(likelihood).columns(z, None)
    atol = PRECISION[dtype]
    torch.testing.assert_close(summed_outer(columns, z), dense(z, likelihood), rtol=0, atol=atol)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(z=outputs(12), seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_a_drawn_vector_is_as_long_as_the_trace_says(likelihood, dtype, z, seed):
    z = z.to(dtype)
    fisher = output_fisher(likelihood)
    expected = dense(z, likelihood).diagonal(dim1=1, dim2=2).sum(1)
    trace = fisher.trace(z, None)
    torch.testing.assert_close(trace.double(), expected, rtol=1e-5, atol=PRECISION[dtype])
    v = fisher.draw(z, None, generator(seed))
    assert v.shape == z.shape
    lengths_sq = v.flatten(1).square().sum(1)
    torch.testing.assert_close(lengths_sq, trace, rtol=4 * PRECISION[dtype], atol=1e-30)


@pytest.mark.parametrize(
    ("likelihood", "z"),
    [
        ("softmax", [0.0, 0.0, 0.0]),
        ("softmax", [6.0, 0.0, -1.0, 2.0]),
        ("softmax", [5.0, 4.5, -1.0]),
        ("bernoulli", [0.3, -2.0, 4.0]),
        ("gaussian", [1.0, 2.0, 3.0]),
    ],
)
def test_outer_products_of_draws_average_to_h(likelihood, z):
    """Each entry within 5 standard errors, over two positions that must not be correlated."""
    m = 40_000
    z = torch.tensor([[z, z[::-1]]]).expand(m, 2, len(z))
    v = output_fisher(likelihood).draw(z, None, generator()).double().flatten(1)
    products = v.unsqueeze(2) * v.unsqueeze(1)
    stderr = products.std(0) / math.sqrt(m) + 1e-7
    assert ((products.mean(0) - dense(z[:1], likelihood)[0]).abs() <= 5 * stderr).all()
    assert (v.mean(0).abs() <= 5 * v.std(0) / math.sqrt(m) + 1e-7).all()


def test_a_softmax_draw_points_from_p_to_a_class_with_its_share_of_the_trace():
    z = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    p, m = z.softmax(0), 20_000
    v = output_fisher("softmax").draw(z.expand(m, 3), None, generator())
    directions = torch.eye(3, dtype=torch.float64) - p
    lengths = directions.norm(dim=1)
    cosines = (v @ (directions / lengths.unsqueeze(1)).T).abs() / v.norm(dim=1, keepdim=True)
    best, drawn = cosines.max(1)
    torch.testing.assert_close(best, torch.ones(m, dtype=torch.float64), rtol=0, atol=1e-12)
    share = p * lengths**2 / (p * lengths**2).sum()
    counts = torch.bincount(drawn, minlength=3) / m
    assert ((counts - share).abs() <= 4 * (share * (1 - share) / m).sqrt()).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@given(z=outputs(12, min_dims=3), seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_ignored_positions_give_zeros_and_do_not_change_the_others(likelihood, z, seed):
    fisher = output_fisher(likelihood)
    shape = z.shape[:-1] if likelihood == "softmax" else z.shape
    labels = torch.where(torch.rand(shape, generator=generator(seed)) < 0.5, -100, 0)
    counted = (labels != -100).unsqueeze(-1) if likelihood == "softmax" else labels != -100
    drawn = fisher.draw(z, labels, generator(seed))
    assert torch.equal(drawn, fisher.draw(z, None, generator(seed)) * counted)
    with_labels, without = fisher.columns(z, labels), fisher.columns(z, None)
    for column, whole in zip(with_labels, without, strict=True):
        assert torch.equal(column, whole * counted)
    traces = fisher.trace(z, labels)
    expected = drawn.flatten(1).square().sum(1)
    torch.testing.assert_close(traces, expected, rtol=1e-10, atol=1e-30)
    assert (fisher.trace(z, torch.full(shape, -100)) == 0).all()
    likelihoods = fisher.log_likelihood(z, torch.full(shape, -100))
    assert (likelihoods == 0).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.bfloat16])
@given(z=outputs(1e4), seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_extreme_outputs_give_finite_numbers(likelihood, dtype, z, seed):
    fisher, z = output_fisher(likelihood), z.to(dtype)
    v, trace = fisher.draw(z, None, generator(seed)), fisher.trace(z, None)
    least = torch.float64 if dtype == torch.float64 else torch.float32
    assert v.dtype == trace.dtype == least
    assert v.isfinite().all()
    assert trace.isfinite().all()
    assert (trace >= 0).all()
    assert all(column.isfinite().all() for column in fisher.columns(z, None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1.0, 20.0, 40.0, 80.0])
def test_rare_labels_are_not_lost_to_cancellation(dtype, gap):
    """Two classes: tr H = 2 p (1 − p), where 1 − p = 1/(1 + e^gap) is far below the precision."""
    z = torch.tensor([[gap, 0.0], [0.0, gap]], dtype=dtype)
    rare = math.exp(-gap) / (1 + math.exp(-gap))
    expected = torch.full((2,), 2 * rare * (1 - rare), dtype=dtype)
    fisher = output_fisher("softmax")
    torch.testing.assert_close(fisher.trace(z, None), expected, rtol=1e-5, atol=0)
    lengths_sq = fisher.draw(z, None, generator()).square().sum(1)
    torch.testing.assert_close(lengths_sq, expected, rtol=1e-5, atol=0)
    (column,) = fisher.columns(z, None)
    torch.testing.assert_close(column.square().sum(1), expected, rtol=1e-5, atol=0)
    bernoulli = output_fisher("bernoulli").trace(z[:, :1] - z[:, 1:], None)
    torch.testing.assert_close(bernoulli, expected / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_score_has_mean_zero_and_covariance_h(likelihood):
    """`log_likelihood` is the one whose Fisher information the rest computes."""
    z = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    fisher = output_fisher(likelihood)
    if likelihood == "gaussian":  # the 3-point Gauss-Hermite rule in each axis
        points = torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)], dtype=torch.float64)
        labels = torch.cartesian_prod(points, points, points) + z.detach()
        each = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
        weights = torch.cartesian_prod(each, each, each).prod(1)
    elif likelihood == "bernoulli":
        labels = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        weights = torch.where(labels == 1, z.sigmoid(), 1 - z.sigmoid()).prod(1).detach()
    else:
        labels, weights = torch.arange(3), z.detach().softmax(1)[0]
    scores = torch.cat(
        [torch.autograd.grad(fisher.log_likelihood(z, y[None]).sum(), z)[0] for y in labels]
    )
    mean = weights @ scores
    covariance = (scores * weights.unsqueeze(1)).T @ scores
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    expected = dense(z.detach(), likelihood)[0]
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-12)


def test_an_unknown_likelihood_is_refused():
    with pytest.raises(ValueError, match=r"one of softmax, bernoulli, gaussian.*'poisson'"):
        output_fisher("poisson")
