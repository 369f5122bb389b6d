"""Hogwild! with one worker is sequential SGD, which scikit-learn knows too."""

import pytest
import torch
from composed import setup
from sklearn.linear_model import SGDClassifier

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
    kernel = composed.problem.kernel
    rows = torch.zeros(composed.problem.num_samples, kernel.rows.num_features, dtype=torch.float64)
    for i in range(len(rows)):
        part = slice(int(kernel.rows.indptr[i]), int(kernel.rows.indptr[i + 1]))
        rows[i, kernel.rows.indices[part].long()] = kernel.rows.values[part].double()
    oracle = SGDClassifier(
        loss="log_loss",
        alpha=0,
        learning_rate="constant",
        eta0=0.5,
        shuffle=False,
        fit_intercept=False,
        max_iter=1,
        tol=None,
    )
    oracle.partial_fit(rows.numpy(), kernel.labels.numpy(), classes=[-1, 1])
    weights = execution.observations[-1].parameters.double()
    torch.testing.assert_close(weights, torch.from_numpy(oracle.coef_[0]), rtol=0, atol=tolerance)
