"""What scikit-learn makes of the same rows, in the same order, with the same constant step."""

import scipy.sparse as sp
import torch
from sklearn.linear_model import SGDClassifier, SGDRegressor


def as_scipy(rows):
    """Sparse rows as scipy has them."""
    return sp.csr_matrix(
        (rows.values.numpy(), rows.indices.numpy(), rows.indptr.numpy()), (len(rows), rows.num_features)
    )


def oracle_weights(rows, labels, loss, learning_rate, epochs=1):
    """The weights of sequential SGD from zero, float64, shape (features,).

    Args:
        loss: log_loss, hinge or squared_error, as scikit-learn calls it.
    """
    fit = SGDRegressor if loss == "squared_error" else SGDClassifier
    model = fit(
        loss=loss,
        alpha=0,
        learning_rate="constant",
        eta0=learning_rate,
        shuffle=False,
        fit_intercept=False,
        max_iter=epochs,
        tol=None,
    )
    return torch.from_numpy(model.fit(as_scipy(rows).astype("float64"), labels.double().numpy()).coef_.reshape(-1))
