"""What a generation says: events as they come, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from steer import display, v1
from steer.errors import ContractError

_REASONS: dict[int, str] = {
    v1.FINISH_REASON_EOS: "eos",
    v1.FINISH_REASON_STOP: "stop",
    v1.FINISH_REASON_MAX_NEW_TOKENS: "max_new_tokens",
    v1.FINISH_REASON_CONTEXT_LENGTH: "context_length",
    v1.FINISH_REASON_CONDITION: "condition",
    v1.FINISH_REASON_NOT_FINITE: "not_finite",
}


@dataclass(frozen=True)
class Token:
    """One generated token, as `stream` gives it."""

    variant: str
    token_id: int
    #: Text that became certain with it: whole characters only, so it can be empty.
    text: str
    logprob: float
    #: The message as the worker sent it: top logprobs, readings, KL.
    message: v1.GeneratedToken = field(repr=False)


@dataclass
class Variant:
    """What one variant said."""

    name: str
    token_ids: list[int] = field(default_factory=list)
    #: What each token added to the text.
    pieces: list[str] = field(default_factory=list)
    #: The text, whole once the variant has finished.
    text: str = ""
    #: "eos", "stop", "max_new_tokens", "context_length", "condition", or "not_finite": edits too
    #: strong for any token to be chosen. Empty until it ended.
    finish_reason: str = ""
    #: Index of the condition that ended it.
    stop_condition: int | None = None
    #: What was done to the model, once it has finished.
    interventions: list[v1.InterventionReport] = field(default_factory=list, repr=False)
    usage: v1.Usage = field(default_factory=v1.Usage, repr=False)
    #: What was read and edited at each token that the model read, if asked for.
    readings: list[v1.Reading] = field(default_factory=list, repr=False)
    _logprobs: list[float] = field(default_factory=list, repr=False)
    _kl: list[float] = field(default_factory=list, repr=False)

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """ln p of every token under the (steered) model."""
        return np.array(self._logprobs, dtype=np.float32)

    @property
    def kl_divergence(self) -> NDArray[np.float32]:
        """KL(steered ‖ unsteered) of every token's distribution; empty unless asked for."""
        return np.array(self._kl, dtype=np.float32)


@dataclass(repr=False)
class Generation:
    """Everything a generation said. In a notebook it shows itself."""

    model_id: str = ""
    seed: int = 0
    prompt_token_ids: list[int] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    probe_names: list[str] = field(default_factory=list)
    edited_hook_names: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sampling: v1.Sampling = field(default_factory=v1.Sampling, repr=False)

    def __getitem__(self, variant: str | int) -> Variant:
        """A variant by name or index."""
        if isinstance(variant, int):
            return self.variants[variant]
        for one in self.variants:
            if one.name == variant:
                return one
        names = ", ".join(repr(one.name) for one in self.variants)
        raise KeyError(f"no variant {variant!r}; there are {names}")

    def __iter__(self) -> Iterator[Variant]:
        return iter(self.variants)

    @property
    def text(self) -> str:
        """The text of the last variant: the steered one, or the only one."""
        return self.variants[-1].text

    def __repr__(self) -> str:
        texts = ", ".join(f"{one.name}: {one.text[:60]!r}" for one in self.variants)
        return f"<Generation of {self.model_id}, seed {self.seed}; {texts}>"

    def __str__(self) -> str:
        if len(self.variants) == 1:
            return self.text
        return "\n\n".join(f"[{one.name}]\n{one.text}" for one in self.variants)

    def probe(
        self, probe: str | int = 0, variant: str | int = -1, *, after: bool = False
    ) -> NDArray[np.float32]:
        """A probe's value at every generated token, before or after the edits.

        The last token is written but never read, so its value is NaN.
        """
        column = self.probe_names.index(probe) if isinstance(probe, str) else probe
        one = self[variant]
        values = np.full(len(one.token_ids), np.nan, dtype=np.float32)
        for reading in one.readings:
            at = reading.position - len(self.prompt_token_ids)
            if 0 <= at < len(values):
                values[at] = (reading.after if after else reading.before)[column]
        return values

    def _repr_html_(self) -> str:
        return display.generation(self)


class Reader:
    """Adds up the events of one stream, and checks that they are of the contract's form."""

    def __init__(self) -> None:
        self.generation = Generation()
        self._open: set[int] | None = None

    def read(self, response: v1.GenerateResponse) -> Token | None:
        """Takes an event; gives the token if it is one."""
        kind = response.WhichOneof("event")
        if kind == "started":
            self._start(response.started)
            return None
        if kind == "token":
            return self._token(response.token)
        if kind == "finished":
            self._finish(response.finished)
            return None
        raise ContractError("the worker sent an event of an unknown kind")

    def end(self) -> Generation:
        """The generation, once the stream has ended."""
        if self._open is None or self._open:
            raise ContractError("the worker ended the stream before every variant had finished")
        return self.generation

    def _start(self, started: v1.GenerationStarted) -> None:
        if self._open is not None:
            raise ContractError("the worker started a generation twice")
        self._open = set(range(len(started.variant_names)))
        # Filled in place: whoever streams holds this object already.
        generation = self.generation
        generation.model_id = started.model_id
        generation.seed = started.seed
        generation.prompt_token_ids = list(started.prompt_token_ids)
        generation.variants = [Variant(name) for name in started.variant_names]
        generation.probe_names = list(started.probe_names)
        generation.edited_hook_names = list(started.edited_hook_names)
        generation.warnings = list(started.warnings)
        generation.sampling = started.effective_sampling

    def _variant(self, index: int) -> Variant:
        if self._open is None or index not in self._open:
            raise ContractError(f"the worker sent variant {index}, which is not under way")
        return self.generation.variants[index]

    def _token(self, token: v1.GeneratedToken) -> Token:
        variant = self._variant(token.variant)
        variant.token_ids.append(token.token_id)
        variant.pieces.append(token.text)
        variant.text += token.text
        variant.readings.extend(token.readings)
        variant._logprobs.append(token.logprob)
        if token.HasField("kl_divergence"):
            variant._kl.append(token.kl_divergence)
        return Token(variant.name, token.token_id, token.text, token.logprob, token)

    def _finish(self, finished: v1.VariantFinished) -> None:
        variant = self._variant(finished.variant)
        variant.text += finished.text
        variant.finish_reason = _REASONS.get(finished.finish_reason, "unknown")
        variant.usage = finished.usage
        variant.interventions = list(finished.interventions)
        variant.readings.extend(finished.readings)
        if finished.HasField("stop_condition"):
            variant.stop_condition = finished.stop_condition
        if self._open is not None:
            self._open.discard(finished.variant)
