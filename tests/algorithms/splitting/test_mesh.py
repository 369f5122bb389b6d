"""Workers in a box: who is whose neighbour along which axis."""

import pytest

from algorithms.splitting.mesh import Mesh, Shape
from harness.errors import UserError


def test_neighbours_split_layers_and_stages_are_far_apart():
    shape = Shape(tensor=2, data=2, pipeline=2)
    assert [shape.along("tensor", rank) for rank in (0, 3, 5)] == [[0, 1], [2, 3], [4, 5]]
    assert [shape.along("data", rank) for rank in (0, 3, 5)] == [[0, 2], [1, 3], [5, 7]]
    assert [shape.along("pipeline", rank) for rank in (0, 3, 5)] == [[0, 4], [3, 7], [1, 5]]


@pytest.mark.parametrize("axis", Shape._fields)
def test_each_worker_is_on_one_line_of_each_axis_at_its_seat(axis):
    shape = Shape(tensor=4, data=3, pipeline=2)
    lines = {tuple(shape.along(axis, rank)) for rank in range(24)}
    assert sorted(rank for line in lines for rank in line) == list(range(24))
    for line in lines:
        assert [getattr(shape.seat(rank), axis) for rank in line] == list(range(getattr(shape, axis)))


def test_an_axis_takes_what_the_others_leave():
    assert Mesh(data=None, tensor=2, pipeline=2).shape(16) == Shape(tensor=2, data=4, pipeline=2)
    assert Mesh(data=2, tensor=2, pipeline=2).shape(8) == Shape(2, 2, 2)
    assert Mesh(data=2, tensor=2, pipeline=2).shape(1) == Shape(1, 1, 1)  # alone, for comparison


@pytest.mark.parametrize(
    ("sizes", "workers", "words"),
    [
        ((2, 2, 2), 16, "algorithm.mesh must multiply to hardware.num_workers=16, got"),
        ((None, 3, 1), 8, "algorithm.mesh must multiply to a divisor of hardware.num_workers=8, got"),
        ((None, None, 1), 8, "algorithm.mesh must leave at most one of data, tensor and pipeline null"),
        ((0, 1, 1), 8, "algorithm.mesh.data must be >= 1, or null for the rest, got 0"),
    ],
)
def test_what_workers_do_not_fill_is_refused(sizes, workers, words):
    with pytest.raises(UserError) as refusal:
        Mesh(*sizes).shape(workers)
    assert words in str(refusal.value)
