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
