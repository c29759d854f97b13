"""Plans of finding features by what they do, and of training CAVs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer import checks, edits, rpc, v1
from steer.edits import FeatureRef
from steer.registry import CAVS, Listing
from steer.rpc import Call, Plan

#: Rows of one EncodeActivations call.
ROWS_PER_CALL = 256

METHODS = {
    "svm": v1.CAV_METHOD_SVM,
    "mean_difference": v1.CAV_METHOD_MEAN_DIFFERENCE,
    "logistic": v1.CAV_METHOD_LOGISTIC,
}
_SIMILAR = ("label", "feature_index", "sae_id", "cosine", "hook_name")
_ACTIVE = ("label", "feature_index", "activation")


def similar(
    query: str | int | ArrayLike, sae: str | None, within: Sequence[str], top: int
) -> Plan[Listing[v1.SimilarFeature]]:
    """Features whose decoder rows point where a feature's, or a vector, does."""
    within = list(checks.several(within, "within"))
    request = v1.FindSimilarFeaturesRequest(sae_ids=within, top_k=checks.whole(top, "top"))
    if isinstance(query, (str, int)):
        request.feature.CopyFrom(FeatureRef.parse(query).message(sae))
    else:
        request.vector.CopyFrom(v1.Vector(values=edits.vector_of(query)))
    answer = yield from rpc.ask(rpc.FIND_SIMILAR_FEATURES, request)
    return Listing(answer.features, columns=_SIMILAR)


def encode(
    activations: ArrayLike, sae: str | None, top: int
) -> Plan[list[Listing[v1.ActiveFeature]]]:
    """The features that an SAE finds in each row, strongest first."""
    top = checks.whole(top, "top")
    rows = matrix(activations)
    found: list[Listing[v1.ActiveFeature]] = []
    for start in range(0, len(rows), ROWS_PER_CALL):
        values = rows[start : start + ROWS_PER_CALL].ravel()
        request = v1.EncodeActivationsRequest(sae_id=sae or "", values=values, top_k=top)
        answer = yield from rpc.ask(rpc.ENCODE_ACTIVATIONS, request)
        found += [Listing(row.features, columns=_ACTIVE) for row in answer.rows]
    return found


def train_cavs(
    activations: ArrayLike, labels: Sequence[str], config: v1.CavTrainingConfig
) -> Plan[Listing[v1.Cav]]:
    """One CAV per label, trained and judged by the registry. All or nothing."""
    rows = matrix(activations)
    checks.several(labels, "labels")
    if len(rows) != len(labels):
        raise ValueError(f"{len(rows)} activations have {len(labels)} labels")

    def messages() -> Iterator[v1.TrainCavsRequest]:
        yield v1.TrainCavsRequest(config=config)
        for row, label in zip(rows, labels, strict=True):
            example = v1.LabelledActivation(label=str(label), values=row)
            yield v1.TrainCavsRequest(example=example)

    answer: v1.TrainCavsResponse = yield Call(rpc.TRAIN_CAVS, messages())
    return Listing(answer.cavs, columns=CAVS, trained_before=answer.trained_before)


def training_config(
    hook: str,
    model_id: str,
    method: str,
    *,
    held_out: float | None,
    null_trials: int | None,
    seed: int | None,
) -> v1.CavTrainingConfig:
    """How to train; what is None is the registry's choice."""
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is none of {', '.join(METHODS)}")
    return v1.CavTrainingConfig(
        hook_name=hook,
        model_id=model_id,
        method=METHODS[method],
        held_out=None if held_out is None else checks.number(held_out, "held_out"),
        null_trials=None if null_trials is None else checks.whole(null_trials, "null_trials"),
        seed=None if seed is None else checks.whole(seed, "seed", bits=64),
    )


def matrix(activations: ArrayLike) -> NDArray[np.float32]:
    """Rows of finite numbers; one vector is one row."""
    rows = np.atleast_2d(np.asarray(activations, dtype=np.float32))
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"activations are rows, [n, width]; this array has the shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("activations: some are not finite; leave out the rows of dropped texts")
    return rows
