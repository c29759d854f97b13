"""Similar features, encoding and training CAVs, against the real services on the demo model."""

from __future__ import annotations

import numpy as np
import pytest

from steer import Client, InvalidRequest

HOOK = "blocks.3.hook_resid_post"


def test_a_feature_is_like_itself(client: Client) -> None:
    feature = client.registry.feature("ice-hockey")
    by_vector = client.registry.similar(feature.decoder, top=3)
    assert (by_vector[0].label, round(by_vector[0].cosine, 4)) == ("ice-hockey", 1.0)
    by_name = client.registry.similar("ice-hockey", top=2)
    assert [one.feature_index for one in by_name] == [one.feature_index for one in by_vector[1:]]
    assert "cosine" in by_vector._repr_html_()


def test_activations_are_encoded(client: Client) -> None:
    text = "The goalie stopped the puck and the hockey team won on the ice."
    [one] = client.capture([text], HOOK, pooling="per_token")
    rows = client.registry.encode(one.activations, top=5)
    unlabelled = next(row for row in rows if not row[0].label)
    assert f"entries: #{unlabelled[0].feature_index}, " in repr(unlabelled)
    assert len(rows) == one.n_tokens
    assert "ice-hockey" in {feature.label for row in rows for feature in row}
    strengths = [feature.activation for feature in rows[-1]]
    assert strengths == sorted(strengths, reverse=True)


def test_cavs_are_trained_and_judged(client: Client) -> None:
    rng = np.random.default_rng(0)
    directions = {"left": rng.normal(size=128), "right": rng.normal(size=128)}
    labels = [name for name in directions for _ in range(60)]
    rows = np.stack([directions[name] + rng.normal(size=128) for name in labels])
    trained = client.registry.train_cavs(rows, labels, hook=HOOK, model_id="model", seed=1)
    try:
        assert [cav.name for cav in trained] == ["left", "right"]
        assert trained[0].training.auc.value > 0.95
        assert not trained[0].training.noise
        assert trained.trained_before == []
        # Another seed permutes and holds out others, and stores the same numbers.
        again = client.registry.train_cavs(rows, labels, hook=HOOK, model_id="model", seed=2)
        assert again.trained_before == ["left", "right"]
        assert [cav.training for cav in again] == [cav.training for cav in trained]
        for shown in (repr(again), again._repr_html_()):
            assert "shown with their first training: left, right" in shown
        vector = client.registry.cav("left").vector
        difference = directions["left"] - directions["right"]
        assert vector @ difference / np.linalg.norm(vector) > 0.5 * np.linalg.norm(difference)
    finally:
        for cav in trained:
            client.registry.delete_cav(cav.name)


def test_what_cannot_be_trained_is_refused(client: Client) -> None:
    rows = np.ones((4, 128))
    with pytest.raises(ValueError, match="4 activations have 3 labels"):
        client.registry.train_cavs(rows, ["a", "b", "a"], hook=HOOK, model_id="m")
    with pytest.raises(ValueError, match="is none of svm"):
        client.registry.train_cavs(rows, ["a"] * 4, hook=HOOK, model_id="m", method="magic")
    with pytest.raises(ValueError, match="not finite"):
        client.registry.encode(rows * np.nan)
    with pytest.raises(InvalidRequest):
        client.registry.train_cavs(rows, ["a"] * 4, hook=HOOK, model_id="m")
