"""Hogwild! with one worker is sequential SGD, which scikit-learn knows too."""

import pytest
import torch
from composed import setup
from oracle import oracle_weights

ROWS = ["problem=logistic_regression", "problem.synthetic_samples=2000", "problem.synthetic_features=500"]
ONCE = [
    "budget.epochs=1",
    "budget.observations=1",
    "data.order=storage",
    "tracking=none",
    "algorithm.learning_rate=0.5",
]


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])  # rounding of 75-term sums
def test_one_worker_equals_scikit_learn(hardware, dtype, tolerance):
    composed = setup(
        "algorithm=hogwild", f"hardware={hardware}", "hardware.num_workers=1", *ROWS, *ONCE, f"problem.dtype={dtype}"
    )
    execution = composed.hardware.execute(composed.program(), lambda samples: None)
    rows, labels = composed.problem.rows, composed.problem.labels
    weights = execution.observations[-1].parameters.double()
    torch.testing.assert_close(weights, oracle_weights(rows, labels, "log_loss", 0.5), rtol=0, atol=tolerance)
