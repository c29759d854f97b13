"""Generation, against the real services on the demo model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DEMO

import steer
from steer import CavEdit, Client, FeatureEdit, InvalidRequest, NotFound, VectorEdit, v1

REFERENCE = json.loads((DEMO / "reference.json").read_text())
HOOK = REFERENCE["hook"]


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: case["prompt"][:20])
def test_tokens_are_those_of_the_reference(client: Client, case: dict) -> None:
    feature, cav = REFERENCE["feature"], REFERENCE["cav"]
    generation = client.generate(
        case["prompt_ids"],
        compare=True,
        variants={
            "feature": {"feature": {feature["index"]: feature["value"]}},
            "cav": {"cav": {cav["label"]: cav["strength"]}},
        },
        max_new_tokens=REFERENCE["new_tokens"],
        temperature=0.0,
        repetition_penalty=1.0,
        ignore_eos=True,
    )
    assert generation.prompt_token_ids == case["prompt_ids"]
    got = {variant.name: variant.token_ids for variant in generation}
    assert got == case["tokens"]
    assert got["baseline"] != got["feature"] != got["cav"]


def test_one_call(config: steer.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_WORKER", config.worker)
    monkeypatch.setenv("STEER_REGISTRY", config.registry)
    steer.client.cache_clear()
    options = {"add_generation_prompt": True, "seed": 7, "max_new_tokens": 40}
    plain = steer.generate("Write a haiku.", **options)
    steered = steer.generate("Write a haiku.", feature={"ice-hockey": 26}, **options)
    both = steer.compare("Write a haiku.", feature={"ice-hockey": 26}, **options)
    assert str(steered) == steered.text != plain.text
    assert (both["baseline"].text, both["steered"].text) == (plain.text, steered.text)
    [report] = steered[0].interventions
    assert (report.payload_name, report.edit, report.hook_name) == ("ice-hockey", "set 26", HOOK)
    assert report.positions_changed > 0
    steer.client.cache_clear()


def test_the_registrys_message_reaches_the_worker_as_it_is(client: Client) -> None:
    feature = client.registry.feature("ice-hockey")
    by_name = client.generate("Write a haiku.", feature="ice-hockey=26", seed=1)
    by_message = client.generate(
        "Write a haiku.", feature=FeatureEdit(feature.message, set=26), seed=1
    )
    assert by_name[0].token_ids == by_message[0].token_ids
    digests = {g[0].interventions[0].payload_digest for g in (by_name, by_message)}
    assert len(digests) == 1


def test_a_vector_of_ones_own_is_used_as_given(client: Client) -> None:
    cav = client.registry.cav("birds")
    assert cav.vector.dtype == np.float32
    assert cav.vector.shape == (client.model().d_model,)
    stored = client.generate("Write a haiku.", cav={"birds": 18}, seed=3)
    own = client.generate("Write a haiku.", cav=VectorEdit(cav.vector, HOOK, 18), seed=3)
    assert stored[0].token_ids == own[0].token_ids


def test_tokens_stream_and_cancel(client: Client) -> None:
    with client.stream("Write a haiku.", seed=7, ignore_eos=True, max_new_tokens=100) as tokens:
        first = [next(tokens), next(tokens)]
        assert tokens.generation[0].token_ids == [token.token_id for token in first]
    # The stream was left: the worker has its slot back soon.
    assert client.generate("Write a haiku.", seed=7, max_new_tokens=2)[0].token_ids == [
        token.token_id for token in first
    ]


def test_probes_conditions_and_telemetry(client: Client) -> None:
    generation = client.generate(
        "Write a haiku.",
        add_generation_prompt=True,
        seed=10,
        feature={"baseball": "1max"},
        when="trains>3:once",
        probe=["trains", "cav:birds"],
        stop_when="baseball>9000",
        kl=True,
        edit_norms=True,
        compare=True,
    )
    assert generation.probe_names == ["trains", "cav:birds"]
    values = generation.probe("trains", "steered")
    assert len(values) == len(generation["steered"].token_ids)
    assert np.isnan(values[-1])
    assert np.nanmax(values) > 0
    assert (generation["baseline"].kl_divergence == 0).all()
    assert generation["steered"].kl_divergence.max() > 0
    # The largest activation is the registry's.
    largest = client.registry.feature("baseball").max_activation
    assert generation["steered"].interventions[0].edit == f"set {largest:g}"
    assert generation["steered"].interventions[0].gate_firings > 0


def test_a_condition_ends_the_text(client: Client) -> None:
    generation = client.generate("Write a haiku.", seed=7, stop_when=["space<-1", "space>-1"])
    assert (generation[0].finish_reason, generation[0].stop_condition) == ("condition", 1)
    assert len(generation[0].token_ids) == 1


def test_other_edits(client: Client) -> None:
    edits = ["sea:ablate", "space:min=3", FeatureEdit("demo::#60", scale=2), "trains:max=0.5max"]
    cavs = ["birds=0.1norm", CavEdit("baseball", clamp=(None, 2.0)), "chess:ablate"]
    generation = client.generate("Write a haiku.", feature=edits, cav=cavs, positions="generated")
    prompt = len(generation.prompt_token_ids)
    reports = generation[0].interventions
    assert [r.edit.split()[0] for r in reports][:4] == ["set", "min", "scale", "max"]
    assert len(reports) == 7
    assert all(r.positions_touched < prompt + len(generation[0].token_ids) for r in reports)


def test_errors_name_the_field(client: Client) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.generate("Write a haiku.", top_p=2.0)
    [violation] = refused.value.violations
    assert violation.field == "sampling.top_p"
    with pytest.raises(NotFound, match="no-such-label"):
        client.generate("Write a haiku.", feature={"no-such-label": 1})
    with pytest.raises(TypeError, match="no option 'features'"):
        client.generate("Write a haiku.", features={"sea": 1})  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="'everything' is none of all, prompt, generated"):
        client.generate("Write a haiku.", feature={"sea": 1}, positions="everything")  # type: ignore[arg-type]


def test_tokenize_score_and_project(client: Client) -> None:
    tokens = client.tokenize("Write a haiku.", add_generation_prompt=True)
    assert tokens.tokens[0].special
    assert "Write a haiku." in tokens.rendered
    score = client.score(
        "Write a haiku.", "the goalie waits", feature={"ice-hockey": 26}, compare=True
    )
    plain, steered = score.scores
    assert steered.perplexity < plain.perplexity
    vector = client.registry.feature("ice-hockey").decoder
    by_name = client.project("ice-hockey", top=5)
    assert len(by_name.top) == 5
    assert by_name.top == client.project(vector, top=5).top
    assert client.project("cav:birds").top


def test_the_model_says_what_it_is(client: Client) -> None:
    model = client.model()
    assert isinstance(model, v1.GetModelResponse)
    assert (model.d_model, model.family) == (128, "gemma2")
