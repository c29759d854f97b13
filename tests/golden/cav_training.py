"""Labelled activations and what scikit-learn's linear classifiers make of them.

`<name>.safetensors`: `x` [n, d] float32, `labels` [n] int32, `svm` and `logistic` [classes, d] float64,
the one-vs-rest coefficients of LinearSVC and LogisticRegression, without an intercept, C = 1.
"""

import shutil

import numpy as np
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC


def build(root):
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name, (x, labels) in datasets().items():
        classes = range(labels.max() + 1)
        svm = np.stack([fit_svm(x, labels == c) for c in classes])
        logistic = np.stack([fit_logistic(x, labels == c) for c in classes])
        save_file({"x": x, "labels": labels.astype(np.int32), "svm": svm, "logistic": logistic}, root / f"{name}.safetensors")
    print("cav_training: 4 data sets", flush=True)


def datasets():
    rng = np.random.default_rng(7)

    def clusters(n, d, classes, spread):
        labels = rng.permutation(np.arange(n) % classes)
        centers = rng.normal(size=(classes, d))
        return spread * centers[labels] + rng.normal(size=(n, d)), labels

    def as_model(x, labels):
        # As a residual stream is: a large common part, a few very large components.
        scale = np.exp(rng.normal(size=x.shape[1])) * 20
        scale[:2] *= 50
        return x * scale + 10 * scale, labels

    sets = {
        "wide": clusters(40, 96, 3, 0.5),
        "tall": clusters(200, 24, 4, 1.0),
        "like_a_model": as_model(*clusters(150, 48, 3, 0.3)),
        "noise": clusters(80, 20, 2, 0.0),
    }
    return {name: (x.astype(np.float32), labels) for name, (x, labels) in sets.items()}


def fit_svm(x, positive):
    # liblinear's trust region Newton, to the end: what its dual descent would reach if it went on.
    model = LinearSVC(fit_intercept=False, dual=False, tol=1e-13, max_iter=1_000_000)
    w = model.fit(x.astype(np.float64), positive).coef_[0]
    y = np.where(positive, 1.0, -1.0)
    check(w, w - 2 * x.T.astype(np.float64) @ (y * np.maximum(0, 1 - y * (x @ w))), x, y * 2)
    return w


def fit_logistic(x, positive):
    model = LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-13, max_iter=1000)
    w = model.fit(x.astype(np.float64), positive).coef_[0]
    y = np.where(positive, 1.0, -1.0)
    check(w, w - x.T.astype(np.float64) @ (y / (1 + np.exp(y * (x @ w)))), x, y / 2)
    return w


def check(w, gradient, x, pull):
    """Converged: the gradient is nothing beside what it is at w = 0."""
    ratio = np.linalg.norm(gradient) / np.linalg.norm(x.T.astype(np.float64) @ pull)
    assert ratio < 1e-7, ratio
