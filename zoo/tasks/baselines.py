"""What a network has to beat: linear models of scikit-learn, fitted on the same training rows.

The solver finds the optimum of what the entry `logistic_regression` approaches by steps.
"""

import warnings

import numpy as np

_MOST = 10_000  # rows or pixels to fit on


def linear(
    inputs: np.ndarray, targets: np.ndarray, new: np.ndarray, *, values: bool = False, scores: bool = False
) -> np.ndarray:
    """Answers of a logistic (or ridge) regression to new rows.

    Args:
        inputs: `(rows, features)`; at most 10,000 of them are used.
        targets: class indices, or values, `(rows,)`.
        new: `(rows, features)`.
        values: whether targets are values.
        scores: whether each class' score is wanted, and not the class that has the highest.

    Returns:
        Class indices, or values, `(rows,)`; or scores `(rows, classes)`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from threadpoolctl import threadpool_limits

    rows = np.random.default_rng(0).permutation(len(inputs))[:_MOST]
    model = Ridge() if values else LogisticRegression(max_iter=300)
    # several threads gain little on so few rows, and where others use the processor they take 200 times as long
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are near enough
        fitted = model.fit(inputs[rows], targets[rows])
    return fitted.decision_function(new).reshape(len(new), -1) if scores else fitted.predict(new)


def flat(data, part: str) -> np.ndarray:
    """The model's inputs of a split, one line of features for each row."""
    rows = getattr(data, part)
    return data.signature.inputs(rows.x).reshape(len(rows.y), -1)
