"""Registry, captures and sweeps, against the real services on the demo model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import DEMO, demo_file

from steer import AsyncClient, Captured, Client, Config, NotFound, v1

HOOK = "blocks.3.hook_resid_post"
ICE_HOCKEY = json.loads((DEMO / "labels.json").read_text())["ice-hockey"]


def test_search_and_listings(client: Client) -> None:
    found = client.registry.search("hockey")
    assert [one.label for one in found] == ["ice-hockey"]
    table = found.to_pandas()
    assert table.loc[0, "feature_index"] == ICE_HOCKEY
    listed = client.registry.features("demo")
    with_candidates = client.registry.features("demo", candidates=True)
    assert 0 < len(listed) <= len(with_candidates)
    assert len(client.registry.features("demo", limit=3)) == 3
    assert [sae.sae_id for sae in client.registry.saes()] == ["demo"]
    assert "birds" in [cav.name for cav in client.registry.cavs("bi")]
    assert "ice-hockey" in found._repr_html_()


def test_what_is_left_out_is_said(client: Client, tmp_path: Path) -> None:
    whole = client.registry.features("demo", limit=None)
    assert whole.truncated == ""
    assert "more" not in repr(whole)
    part = client.registry.features("demo", limit=3)
    assert part.truncated == "the first 3; more with a larger limit"
    assert part.truncated in repr(part)
    assert part.truncated in part._repr_html_()
    # More words begin with "q" than a search looks at.
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({f"a q{i:03}x": i % 64 for i in range(700)}))
    sae = DEMO / demo_file()["sae"]["path"]
    client.registry.import_sae(sae, name="many", hook=HOOK, model_id="m")
    try:
        client.registry.import_labels(labels, sae="many")
        found = client.registry.search("q", sae="many", limit=1000)
        assert len(found) < 700
        assert "the words of the query stand for too many" in found.truncated
        assert found.truncated in repr(found)
        assert client.registry.search("q123x", sae="many").truncated == ""
    finally:
        assert client.registry.delete_sae("many", purge=True) == 1


def test_a_feature_comes_with_its_vectors(client: Client) -> None:
    feature = client.registry.feature(ICE_HOCKEY, sae="demo")
    assert (feature.label, feature.hook_name) == ("ice-hockey", HOOK)
    assert feature.encoder.shape == feature.decoder.shape == (128,)


def test_cavs_are_stored_and_removed(client: Client) -> None:
    rng = np.random.default_rng(0)
    vector = rng.normal(size=128)
    created = client.registry.create_cav("mine", {HOOK: vector}, model_id="model", origin="test")
    fetched = client.registry.cav(f"mine@{created.digest[:12]}")
    np.testing.assert_array_equal(fetched.vector, vector.astype(np.float32))
    assert client.registry.delete_cav("mine") == 1
    with pytest.raises(NotFound):
        client.registry.cav("mine")
    deleted = client.registry.cavs("mine", deleted=True)
    assert [cav.HasField("delete_time") for cav in deleted] == [True]
    assert client.registry.undelete_cav("mine") == 1
    np.testing.assert_array_equal(client.registry.cav("mine").vector, fetched.vector)
    assert client.registry.delete_cav("mine", purge=True) == 1
    with pytest.raises(NotFound):
        client.registry.undelete_cav("mine")
    with pytest.raises(ValueError, match="not finite"):
        client.registry.create_cav("bad", {HOOK: [np.nan] * 128})
    with pytest.raises(ValueError, match=r"shape \(1, 128\)"):
        client.registry.create_cav("bad", {HOOK: [vector]})


def test_an_sae_is_uploaded_with_progress(client: Client) -> None:
    stages: list[v1.ImportProgress] = []
    sae = client.registry.upload_sae(
        DEMO / demo_file()["sae"]["path"],
        name="uploaded",
        hook=HOOK,
        model_id="model",
        on_progress=stages.append,
    )
    try:
        assert (sae.sae_id, sae.d_in) == ("uploaded", 128)
        assert stages
    finally:
        assert client.registry.delete_sae("uploaded", purge=True) == 1
    with pytest.raises(FileNotFoundError):
        client.registry.import_labels("no/such/file", sae="demo")


def test_a_capture_is_a_matrix(client: Client) -> None:
    texts = ["the last goalie waits", "the", "the heron waits long", "a"] * 50
    matrix = client.activations(texts, HOOK, skip_tokens=2)
    assert matrix.shape == (200, 128)
    # Texts with no tokens left are NaN; the others do not depend on their place.
    assert np.isnan(matrix).all(axis=1).sum() == 100
    np.testing.assert_array_equal(matrix[0], matrix[4])


def test_a_capture_per_token(client: Client) -> None:
    [one] = client.capture(["the last goalie waits"], HOOK, pooling="per_token", max_tokens=4)
    assert one.activations.shape == (4, 128)
    assert len(one.token_ids) == one.n_tokens == 4
    # A capture that is left early ends.
    endless = client.capture((f"text {i}" for i in range(10**9)), HOOK)
    assert next(endless).activations.shape == (128,)
    endless.close()  # type: ignore[attr-defined]


def failing_texts() -> Iterator[str | list[int]]:
    yield "the last goalie waits"
    raise OSError("the disk is gone")


def test_what_texts_raise_reaches_the_caller(client: Client, config: Config) -> None:
    async def capture(texts: Iterable[str | list[int]]) -> list[Captured]:
        async with AsyncClient(config) as several:
            return [one async for one in several.capture(texts, HOOK)]

    captured = client.capture(failing_texts(), HOOK)
    assert next(captured).n_tokens > 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(captured)
    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(capture(failing_texts()))
    for wrong in ([[-1]], ["a", [2, -1]]):
        with pytest.raises(ValueError, match=r"prompt.token_ids.ids\[[01]\]: is -1; must be 0 to"):
            client.activations(wrong, HOOK)
        with pytest.raises(ValueError, match=r"prompt.token_ids.ids\[[01]\]: is -1; must be 0 to"):
            asyncio.run(capture(wrong))


def test_a_sweep_is_a_data_frame(client: Client) -> None:
    sweep = client.sweep(
        "Write a haiku.",
        range(0, 49, 8),
        feature="ice-hockey",
        add_generation_prompt=True,
        seed=7,
        max_new_tokens=40,
    )
    table = sweep.to_pandas()
    assert list(table["strength"][1:]) == list(range(0, 49, 8))
    assert np.isnan(table["strength"][0])
    assert table["text"][0] == table["text"][1], "strength 0 of a silent feature changes nothing"
    assert table["ice-hockey"].iloc[-1] > 5 > table["ice-hockey"][0]
    assert table["perplexity"].iloc[-1] > 5 * table["perplexity"][0]
    assert sweep.svg().startswith("<svg")
    assert "polyline" in sweep._repr_html_()


def test_a_sweep_larger_than_a_request_is_several(client: Client) -> None:
    at_once = client.model().limits.max_sequences
    sweep = client.sweep(
        "Write a haiku.", np.linspace(0, 20, at_once + 5), cav="birds", max_new_tokens=2
    )
    assert len(sweep.points) == at_once + 6
    assert sweep.probe_names == ["cav:birds"]


def test_a_cav_is_read_where_it_is_added(client: Client) -> None:
    hook = "blocks.1.hook_resid_post"
    music = client.registry.cav("music")
    assert list(music.vectors) == [HOOK]
    written = client.generate(
        "Write a haiku.", probe="cav:music", hook=hook, seed=1, max_new_tokens=4
    )
    read = written.prompt_token_ids + written[0].token_ids[:1]
    [there] = client.capture([read], hook, pooling="per_token")
    expected = there.activations[-1] @ music.vector
    assert written.probe("cav:music")[0] == pytest.approx(expected, rel=1e-4)
    options = {"seed": 1, "max_new_tokens": 4}
    moved, own = (
        client.sweep("Write a haiku.", [4], cav="music", **where, **options)  # type: ignore[arg-type]
        for where in ({"hook": hook}, {})
    )
    assert moved.points[0].probe_means != own.points[0].probe_means
    with pytest.raises(ValueError, match="hook: is for CAVs, and none is named"):
        client.generate("Write a haiku.", feature={"music": 3}, hook=hook)


def test_strengths_that_are_close_are_different_points(client: Client) -> None:
    sweep = client.sweep("Write a haiku.", [1000001, 1000002], cav="birds", max_new_tokens=2)
    assert [point.strength for point in sweep.points] == [None, 1000001, 1000002]
    with pytest.raises(ValueError, match=r"strengths\[2\]: is 1, as strengths\[0\]"):
        client.sweep("Write a haiku.", [1, 2, 1.0], cav="birds")


def test_a_sweep_needs_one_thing_to_sweep(client: Client) -> None:
    with pytest.raises(ValueError, match="one of feature, cav"):
        client.sweep("Write a haiku.", [1])
    with pytest.raises(ValueError, match="1 to 1000"):
        client.sweep("Write a haiku.", [], cav="birds")
