"""What a generation can be asked for, as keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from steer import v1
from steer.edits import Cavs, Features

#: A user message, a conversation, or token ids.
Prompt = str | Sequence[Mapping[str, str]] | Sequence[int] | NDArray[np.integer]


class SteeringOptions(TypedDict, total=False):
    """What is done to the activations."""

    #: {"baseball": 525} sets features; text ("baseball:min=5") and FeatureEdit say other edits.
    feature: Features
    #: {"rec.autos": 600} adds CAVs; also "rec.autos:ablate", CavEdit, VectorEdit.
    cav: Cavs
    #: Which tokens: all (default), of the prompt, or generated.
    positions: Literal["all", "prompt", "generated"] | v1.Positions
    #: Where, among these: "space>3", "space>3:once", "cav:birds<0:for=5".
    when: str
    #: Hook point for CAVs instead of their own, also where they are read.
    hook: str


class PromptOptions(TypedDict, total=False):
    """How the prompt is read."""

    #: SAE of features that name none; needed where the registry holds several.
    sae: str
    #: Leave the chat template out.
    raw: bool
    #: Open the assistant's turn.
    add_generation_prompt: bool
    #: "batch" yields to "interactive" (default).
    priority: Literal["interactive", "batch"]
    #: Seconds for the whole call, retries included.
    timeout: float


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen, as in `transformers`; defaults come from the model."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: Sequence[str]
    do_sample: bool
    top_logprobs: int
    ignore_eos: bool


class ObserveOptions(TypedDict, total=False):
    """What is reported beside the text."""

    #: Features and CAVs ("cav:NAME") whose values are reported with every token.
    probe: str | Sequence[str]
    #: End where one of these fires: "space>3".
    stop_when: str | Sequence[str]
    #: KL(steered ‖ unsteered) of every token's distribution.
    kl: bool
    #: ‖Δ‖/‖x‖ at every edited hook point and token.
    edit_norms: bool
    #: Read the probes at every prompt token too.
    prompt_readings: bool


class SweepOptions(PromptOptions, SamplingOptions, ObserveOptions, total=False):
    """Everything about a sweep except what is swept."""

    positions: Literal["all", "prompt", "generated"] | v1.Positions
    when: str
    hook: str


class GenerateOptions(SteeringOptions, PromptOptions, SamplingOptions, ObserveOptions, total=False):
    """Everything about a generation."""

    #: Decode the unsteered baseline beside it.
    compare: bool
    #: Several ways of steering in one batch: {"mild": {"feature": {"space": 10}}, …}.
    variants: Mapping[str, SteeringOptions]


class ScoreOptions(SteeringOptions, PromptOptions, total=False):
    """Everything about scoring a text."""

    #: Score it unsteered too.
    compare: bool
    variants: Mapping[str, SteeringOptions]
