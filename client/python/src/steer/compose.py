"""Options → the worker's request.

Payloads come from the registry and go into the request's tables as they are, each once;
interventions, conditions and probes refer to their rows. Nothing is computed on vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike

from steer import checks, edits, rpc, v1
from steer.edits import CavEdit, Condition, FeatureEdit, FeatureRef, Gate, Readout, VectorEdit
from steer.errors import ContractError
from steer.options import GenerateOptions, Prompt, SamplingOptions, ScoreOptions, SteeringOptions
from steer.rpc import Plan

#: Most features in one GetFeatures call.
FEATURES_PER_CALL = 256

#: Least value and bits of sampling's whole numbers, and its other numbers. The worker knows
#: what more is asked of them, and names them as these errors do.
_WHOLE = {"max_new_tokens": (1, 32), "top_k": (0, 32), "seed": (0, 64), "top_logprobs": (0, 32)}
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_SCOPES = {
    "all": v1.POSITION_SCOPE_ALL,
    "prompt": v1.POSITION_SCOPE_PROMPT,
    "generated": v1.POSITION_SCOPE_GENERATED,
}
_PRIORITIES = {"interactive": v1.PRIORITY_INTERACTIVE, "batch": v1.PRIORITY_BATCH}
_STEERING = tuple(SteeringOptions.__annotations__)


def generate_request(prompt: Prompt, options: GenerateOptions) -> Plan[v1.GenerateRequest]:
    """The request that the options mean."""
    _refuse_unknown(options, GenerateOptions)
    request = v1.GenerateRequest(prompt=prompt_message(prompt, options))
    sampling = _sampling(options)
    if sampling is not None:
        request.sampling.CopyFrom(sampling)
    if "priority" in options:
        request.priority = _choice("priority", options["priority"], _PRIORITIES)
    composer = _Composer(request, options.get("sae"))
    yield from composer.variants(options)
    for text in _several(options.get("probe", ())):
        readout = yield from composer.readout(Readout.parse(text), options.get("hook"))
        request.probes.append(v1.Probe(name=text, readout=readout))
    stop_when = []
    for text in _several(options.get("stop_when", ())):
        condition = Condition.parse(text)
        stop_when.append((yield from composer.condition(condition, options.get("hook"))))
    composer.check_hook(options)
    if stop_when and not request.variants:
        request.variants.append(v1.Variant(name="baseline"))
    for variant in request.variants:
        variant.stop_when.extend(stop_when)
    if any(options.get(name) for name in ("kl", "edit_norms", "prompt_readings")):
        request.telemetry.CopyFrom(
            v1.Telemetry(
                kl_divergence=options.get("kl", False),
                edit_norms=options.get("edit_norms", False),
                prompt_readings=options.get("prompt_readings", False),
            )
        )
    return request


def score_request(
    prompt: Prompt, continuation: str | Sequence[int], options: ScoreOptions
) -> Plan[v1.ScoreTextRequest]:
    """The request that scores a continuation under the options' variants."""
    _refuse_unknown(options, ScoreOptions)
    request = v1.ScoreTextRequest(prompt=prompt_message(prompt, options))
    if isinstance(continuation, str):
        request.text = continuation
    else:
        request.token_ids.CopyFrom(_token_ids(continuation, "token_ids.ids"))
    if "priority" in options:
        request.priority = _choice("priority", options["priority"], _PRIORITIES)
    composer = _Composer(request, options.get("sae"))
    yield from composer.variants(options)
    composer.check_hook(options)
    return request


def prompt_message(prompt: Prompt, options: Mapping[str, Any]) -> v1.Prompt:
    """A prompt in the form that the options and its type say."""
    if isinstance(prompt, str):
        if options.get("raw"):
            return v1.Prompt(text=prompt)
        prompt = [{"role": "user", "content": prompt}]
    if len(prompt) and not isinstance(prompt[0], Mapping):
        return v1.Prompt(token_ids=_token_ids(prompt, "prompt.token_ids.ids"))
    if options.get("raw"):
        raise ValueError("raw: a conversation needs the chat template; give one text")
    chat = v1.Chat(
        messages=[v1.ChatMessage(**message) for message in prompt],  # type: ignore[arg-type]
        add_generation_prompt=options.get("add_generation_prompt", False),
    )
    return v1.Prompt(chat=chat)


@dataclass
class _Composer:
    """Fills a request's payload tables."""

    request: v1.GenerateRequest | v1.ScoreTextRequest
    sae: str | None
    _features: dict[FeatureRef, v1.SaeFeature] = field(default_factory=dict)
    _cavs: dict[str, v1.Cav] = field(default_factory=dict)

    def variants(self, options: GenerateOptions | ScoreOptions) -> Plan[None]:
        """The baseline if asked for, then the options' own steering, then the named variants."""
        own: SteeringOptions = {k: v for k, v in options.items() if k in _STEERING}  # type: ignore[assignment]
        several = dict(options.get("variants", {}))
        if "feature" in own or "cav" in own:
            several = {"steered": own, **several}
        else:
            # Without edits of their own, `positions`, `when` and `hook` are every variant's.
            if not several and own.keys() - {"hook"}:
                names = ", ".join(name for name in own if name != "hook")
                raise ValueError(f"{names}: nothing is edited; give feature=, cav= or variants=")
            several = {name: {**own, **steering} for name, steering in several.items()}
        if options.get("compare"):
            several = {"baseline": SteeringOptions(), **several}
        for name, steering in several.items():
            _refuse_unknown(steering, SteeringOptions, f"variants[{name!r}]")
            interventions = yield from self.interventions(steering)
            self.request.variants.append(v1.Variant(name=name, interventions=interventions))

    def check_hook(self, options: GenerateOptions | ScoreOptions) -> None:
        """Refuses a hook point for CAVs where none is named."""
        if "hook" in options and not self._cavs:
            raise ValueError("hook: is for CAVs, and none is named; features have their SAE's own")

    def interventions(self, steering: SteeringOptions) -> Plan[list[v1.Intervention]]:
        """Features first, then CAVs, each in the order given."""
        features = edits.feature_edits(steering.get("feature", ()))
        yield from self._fetch([e.feature for e in features if isinstance(e.feature, FeatureRef)])
        found = [v1.Intervention(feature=self._feature_edit(edit)) for edit in features]
        for edit in edits.cav_edits(steering.get("cav", ())):
            if isinstance(edit, VectorEdit):
                vector = v1.Vector(name=edit.name, values=edit.vector)
                add = CavEdit(edit.name, add=edit.strength)
                found.append(self._vector_edit(add, edit.hook_name, vector))
            else:
                cav = yield from self._cav(edit.cav)
                for hook_name, vector in directions(cav, steering.get("hook")):
                    found.append(self._vector_edit(edit, hook_name, vector))
        positions = _positions(steering.get("positions"))
        gate = None
        if "when" in steering and found:
            gate = yield from self._gate(Gate.parse(steering["when"]), steering.get("hook"))
        for intervention in found:
            if positions is not None:
                intervention.positions.CopyFrom(positions)
            if gate is not None:
                intervention.gate.CopyFrom(gate)
        return found

    def readout(self, readout: Readout, hook: str | None = None) -> Plan[v1.Readout]:
        """A readout that refers to its payload."""
        if readout.feature is not None:
            yield from self._fetch([readout.feature])
            feature = self._features[readout.feature]
            return v1.Readout(feature=_row(self.request.features, feature))
        cav = yield from self._cav(readout.cav or "")
        chosen = directions(cav, hook)
        if len(chosen) != 1:
            hooks = ", ".join(hook_name for hook_name, _ in chosen)
            raise ValueError(f"{readout.text!r} has several directions ({hooks}); give hook=")
        [(hook_name, vector)] = chosen
        row = _row(self.request.vectors, vector)
        return v1.Readout(direction=v1.DirectionReadout(vector=row, hook_name=hook_name))

    def condition(self, condition: Condition, hook: str | None = None) -> Plan[v1.Condition]:
        """A condition that refers to its payload."""
        readout = yield from self.readout(condition.readout, hook)
        if condition.readout.feature is None:
            threshold = edits.number(condition.threshold, condition.field)
        else:
            feature = self._features[condition.readout.feature]
            threshold = edits.activation(condition.threshold, feature, condition.field)
        if condition.above:
            return v1.Condition(readout=readout, above=threshold)
        return v1.Condition(readout=readout, below=threshold)

    def _gate(self, gate: Gate, hook: str | None) -> Plan[v1.Gate]:
        condition = yield from self.condition(gate.condition, hook)
        return v1.Gate(condition=condition, mode=gate.mode, tokens=gate.tokens)

    def _feature_edit(self, edit: FeatureEdit) -> v1.FeatureEdit:
        feature = edit.feature
        payload = self._features[feature] if isinstance(feature, FeatureRef) else feature
        message = v1.FeatureEdit(feature=_row(self.request.features, payload))
        if edit.operation == "scale":
            amount = edits.number(edit.amount, edit.field)
        else:
            amount = edits.activation(edit.amount, payload, edit.field)
        setattr(message, edit.operation, amount)
        return message

    def _vector_edit(self, edit: CavEdit, hook_name: str, vector: v1.Vector) -> v1.Intervention:
        row = _row(self.request.vectors, vector)
        if edit.operation == "ablate":
            ablate = v1.DirectionAblate(vector=row, hook_name=hook_name)
            return v1.Intervention(direction_ablate=ablate)
        if edit.operation == "clamp":
            lower, upper = edit.bounds
            clamp = v1.ProjectionClamp(vector=row, hook_name=hook_name, lower=lower, upper=upper)
            return v1.Intervention(projection_clamp=clamp)
        strength, unit = edits.strength(edit.strength, edit.field)
        add = v1.VectorAdd(vector=row, hook_name=hook_name, strength=strength, unit=unit)
        return v1.Intervention(vector_add=add)

    def _fetch(self, refs: Sequence[FeatureRef]) -> Plan[None]:
        missing = [ref for ref in dict.fromkeys(refs) if ref not in self._features]
        for start in range(0, len(missing), FEATURES_PER_CALL):
            batch = missing[start : start + FEATURES_PER_CALL]
            fetched = yield from get_features(batch, self.sae)
            self._features.update(zip(batch, fetched, strict=True))

    def _cav(self, name: str) -> Plan[v1.Cav]:
        if name not in self._cavs:
            answer = yield from rpc.ask(rpc.GET_CAV, v1.GetCavRequest(name=name))
            self._cavs[name] = answer.cav
        return self._cavs[name]


def get_features(refs: Sequence[FeatureRef], sae: str | None) -> Plan[list[v1.SaeFeature]]:
    """Features, complete, in the order of the references."""
    request = v1.GetFeaturesRequest(features=[ref.message(sae) for ref in refs])
    answer = yield from rpc.ask(rpc.GET_FEATURES, request)
    if len(answer.features) != len(refs):
        raise ContractError(f"GetFeatures answered {len(answer.features)} of {len(refs)} features")
    return list(answer.features)


def project_request(
    direction: str | ArrayLike, top: int, sae: str | None
) -> Plan[v1.ProjectDirectionRequest]:
    """The request for the tokens that a feature, a CAV ("cav:NAME") or a vector speaks of."""
    top = checks.whole(top, "top")
    if not isinstance(direction, str):
        vector = v1.Vector(values=edits.vector_of(direction))
        return v1.ProjectDirectionRequest(vector=vector, top_k=top)
    readout = Readout.parse(direction)
    if readout.feature is not None:
        [feature] = yield from get_features([readout.feature], sae)
        vector = v1.Vector(name=direction, values=feature.decoder)
    else:
        answer = yield from rpc.ask(rpc.GET_CAV, v1.GetCavRequest(name=readout.cav or ""))
        [(_, vector), *others] = directions(answer.cav, None)
        if others:
            raise ValueError(f"{direction!r} has several directions; give one of its vectors")
    return v1.ProjectDirectionRequest(vector=vector, top_k=top)


def directions(cav: v1.Cav, hook: str | None) -> list[tuple[str, v1.Vector]]:
    """The hook points and vectors of a CAV to use: a hook point selects one of several
    directions, and moves the only one."""
    only = len(cav.directions) == 1
    chosen = [
        (hook or direction.hook_name, direction.vector)
        for direction in cav.directions
        if hook is None or only or direction.hook_name == hook
    ]
    if not chosen:
        available = ", ".join(direction.hook_name for direction in cav.directions)
        raise ValueError(f"CAV {cav.name!r} has no direction at {hook!r}; it has: {available}")
    return chosen


def _row(table: Any, payload: Any) -> int:
    """The payload's row, which is added unless it is there."""
    for row, other in enumerate(table):
        if other == payload:
            return row
    table.append(payload)
    return len(table) - 1


def _sampling(options: GenerateOptions) -> v1.Sampling | None:
    """What is asked of sampling; None is the model's default."""
    given: dict[str, Any] = {}
    for name in SamplingOptions.__annotations__:
        value, field = options.get(name), f"sampling.{name}"
        if value is None:
            continue
        if name in _WHOLE:
            least, bits = _WHOLE[name]
            value = checks.whole(value, field, least=least, bits=bits)
        elif name in _NUMBERS:
            value = checks.number(value, field)
        elif name == "stop":
            value = checks.several(value, field)  # type: ignore[arg-type]
        given[name] = value
    return v1.Sampling(**given) if given else None


def _token_ids(ids: Iterable[Any], name: str) -> v1.TokenIds:
    return v1.TokenIds(ids=[checks.whole(one, f"{name}[{i}]") for i, one in enumerate(ids)])


def _positions(positions: str | v1.Positions | None) -> v1.Positions | None:
    if positions is None or isinstance(positions, v1.Positions):
        return positions
    return v1.Positions(scope=_choice("positions", positions, _SCOPES))


def _choice(option: str, value: str, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{option}: {value!r} is none of {', '.join(choices)}")
    return choices[value]


def _several(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _refuse_unknown(options: Mapping[str, Any], allowed: Any, where: str = "") -> None:
    known = sorted(allowed.__annotations__)
    for name in options:
        if name not in known:
            raise TypeError(
                f"{where or 'options'}: no option {name!r}; there are {', '.join(known)}"
            )
