"""What a checked setup says beforehand, though it will run."""

import pytest
from composed import checked


@pytest.mark.parametrize(
    ("algorithm", "problem", "noted"),
    [
        ("svrg", "matrix_completion", True),
        ("sgld", "matrix_completion", True),
        ("hogwild", "digits_mlp", True),
        ("hogwild", "matrix_completion", False),
        ("svrg", "logistic_regression", False),
        ("all_reduce", "digits_mlp", False),  # which has a kernel for no problem
    ],
)
def test_a_problem_for_which_an_algorithm_has_no_kernel_is_noted(algorithm, problem, noted):
    _, notices = checked(f"algorithm={algorithm}", f"problem={problem}", "hardware=sim_numa2")
    sentence = f"algorithm={algorithm} has no native kernel for problem={problem}: torch's autograd does it, "
    assert (f"{sentence}hundreds of times slower" in notices) == noted


def test_batches_are_torchs_by_choice():
    _, notices = checked("algorithm=svrg", "problem=matrix_completion", "algorithm.batch_size=8", "hardware=sim_numa2")
    assert not notices


GPIPE = "algorithm/pipeline_schedule=gpipe"
SPLITS = ("algorithm.sequence_parallel=true", "algorithm.shard_data=true")


@pytest.mark.parametrize(
    ("mesh", "overrides", "axes"),
    [
        ("{data: 2, tensor: 1, pipeline: 1}", (), ()),
        ("{data: 2, tensor: 1, pipeline: 1}", (GPIPE, "algorithm.shard_data=true"), ("pipeline",)),
        ("{data: 1, tensor: 1, pipeline: 2}", (GPIPE, *SPLITS, "algorithm.micro_batches=2"), ("tensor", "data")),
    ],
)
def test_what_an_axis_of_one_leaves_without_effect_is_noted(mesh, overrides, axes):
    chosen = ["algorithm=parallel_3d", f"algorithm.mesh={mesh}", "hardware.num_workers=2", *overrides]
    _, notices = checked(*chosen, "problem=digits_mlp", "hardware=sim_dgx")
    assert [notice.rpartition(" ")[2] for notice in notices if "has no effect" in notice] == [*axes]
