"""Mixing matrices: graphs, weights, spectral gaps, and what one step of averaging does."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_ranks import results

from algorithms.mixing.graphs import Complete, Exponential, OnePeerExponential, RandomRegular, Ring, Star, Torus
from algorithms.mixing.matrices import Exchange, spectral_gap
from harness.errors import UserError

PLAIN = [Ring, Torus, Exponential, OnePeerExponential, Complete, Star]
UNDIRECTED = [Ring("metropolis"), Torus("metropolis"), Star("metropolis"), RandomRegular("metropolis", 4, 0)]


def every_mixing(weighting):
    return [*(kind(weighting) for kind in PLAIN), RandomRegular(weighting, 4, 1)]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(every_mixing("metropolis")), st.integers(1, 40))
def test_metropolis_weights_are_doubly_stochastic(mixing, workers):
    for matrix in mixing.matrices(workers):
        assert (matrix >= 0).all() and (np.diag(matrix) > 0).all()
        np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=1e-12)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    assert mixing.is_doubly_stochastic(workers)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(every_mixing("uniform")), st.integers(1, 40))
def test_uniform_weights_are_column_stochastic_and_reach_everyone(mixing, workers):
    everyone = np.eye(workers)
    for matrix in mixing.matrices(workers) * workers:
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=1e-12)
        everyone = matrix @ everyone
    assert (everyone > 0).all()


def test_uniform_weights_of_unequal_degrees_are_not_doubly_stochastic():
    assert not Star("uniform").is_doubly_stochastic(5)
    assert Star("uniform").is_doubly_stochastic(2)


def test_rows_are_those_of_the_matrix():
    (matrix,) = Star("metropolis").matrices(4)
    hub, leaf = (Star("metropolis").rows(4, rank)[0] for rank in (0, 2))
    assert hub.sends == (1, 2, 3) and leaf.sends == (0,)
    assert hub.receives == {1: 0.25, 2: 0.25, 3: 0.25} and leaf.own == matrix[2, 2] == 0.75


def test_directed_rows_send_to_others_than_they_receive_from():
    first, second, third = OnePeerExponential("uniform").rows(8, 0)
    assert [row.sends for row in (first, second, third)] == [(1,), (2,), (4,)]
    assert [list(row.receives) for row in (first, second, third)] == [[7], [6], [4]]


@pytest.mark.parametrize(("workers", "degree"), [(9, 4), (10, 3), (16, 4), (30, 6)])
def test_random_regular_graphs_are_regular_connected_and_seeded(workers, degree):
    graph = RandomRegular("metropolis", degree, 0).receivers(workers, 0)
    assert {len(receivers) for receivers in graph} == {degree}
    assert all(rank in graph[other] for rank, receivers in enumerate(graph) for other in receivers)
    assert spectral_gap(RandomRegular("metropolis", degree, 0).matrices(workers)) > ZERO_GAP  # one component
    assert graph == RandomRegular("metropolis", degree, 0).receivers(workers, 0)
    assert graph != RandomRegular("metropolis", degree, 1).receivers(workers, 0)


ZERO_GAP = 1e-9


def test_a_graph_that_cannot_be_is_refused():
    with pytest.raises(
        UserError, match=r"^algorithm.mixing.degree must be even with an odd number of workers \(9\), got 3"
    ):
        RandomRegular("metropolis", 3, 0).matrices(9)


def test_spectral_gaps_are_those_known():
    workers = 12
    ring = 1 - (1 + 2 * math.cos(2 * math.pi / workers)) / 3  # eigenvalues of a circulant matrix
    assert spectral_gap(Ring("metropolis").matrices(workers)) == pytest.approx(ring, rel=1e-9)
    assert spectral_gap(Complete("uniform").matrices(workers)) == pytest.approx(1, abs=1e-9)
    assert spectral_gap(OnePeerExponential("uniform").matrices(16)) == 1  # four steps average exactly
    assert spectral_gap(Ring("uniform").matrices(1)) == 1
    exponential = spectral_gap(Exponential("uniform").matrices(16))
    assert exponential == pytest.approx(2 / (1 + 4), rel=1e-9)  # Ying et al., NeurIPS 2021, proposition 1


@pytest.mark.parametrize("mixing", UNDIRECTED, ids=lambda mixing: type(mixing).__name__)
def test_consensus_distance_shrinks_by_the_spectral_gap(mixing):
    workers, size = 8, 5
    start = torch.randn(workers, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slowest = torch.from_numpy(np.linalg.eigh(mixing.matrices(workers)[0])[1])  # (workers, workers)
    gap = spectral_gap(mixing.matrices(workers))
    ends = results(lambda worker: mixed(worker, mixing, start), workers)
    assert distance(torch.stack(ends)) <= (1 - gap) * distance(start) * (1 + 1e-12)
    bound = start.mean(dim=0) + max(slowest.T, key=lambda vector: slows(mixing, workers, vector))[:, None]
    ends = results(lambda worker: mixed(worker, mixing, bound), workers)
    # rtol: rounding of an eigenvector's computation
    assert distance(torch.stack(ends)) == pytest.approx((1 - gap) * distance(bound), rel=1e-9)  # the bound is tight


def slows(mixing, workers, vector):
    centred = vector - vector.mean()
    after = torch.from_numpy(mixing.matrices(workers)[0]) @ centred
    return (after.norm() / centred.norm()).item() if centred.norm() > 0.5 else 0


def mixed(worker, mixing, start):
    vector = start[worker.rank].clone()
    (row,) = mixing.rows(worker.num_workers, worker.rank)
    Exchange(vector, row).finish()
    return vector


def distance(models):
    return (models - models.mean(dim=0)).norm().item()
