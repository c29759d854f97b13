"""`client.registry`: what the registry holds, for both kinds of client."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from numpy.typing import ArrayLike

from steer import checks, concepts, registry, v1
from steer.registry import Cav, Feature, Listing, OnProgress
from steer.rpc import Plan

Result = TypeVar("Result")


class _Run(Protocol):
    def __call__(self, plan: Plan[Result], /) -> Result: ...


class _AsyncRun(Protocol):
    def __call__(self, plan: Plan[Result], /) -> Awaitable[Result]: ...


def _options(
    name: str, hook: str, model_id: str, scale: float | None, new_version: bool
) -> v1.SaeImportOptions:
    return v1.SaeImportOptions(
        sae_id=name,
        hook_name=hook,
        model_id=model_id,
        activation_scale=None if scale is None else checks.number(scale, "activation_scale"),
        new_version=new_version,
    )


class Registry:
    """Features, labels, SAEs and CAVs."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def search(
        self, query: str, *, sae: str | None = None, limit: int = 20
    ) -> Listing[v1.FeatureLabel]:
        """Labels that match words or prefixes, best first; `truncated` says what is left out."""
        return self._run(registry.search(query, sae, limit))

    def features(
        self,
        sae: str,
        *,
        limit: int | None = 1000,
        index: int | None = None,
        candidates: bool = False,
    ) -> Listing[v1.FeatureLabel]:
        """Labelled features by index; candidates are labels that failed their source's checks."""
        return self._run(registry.features(sae, limit, index, candidates))

    def feature(self, name: str | int, *, sae: str | None = None) -> Feature:
        """One feature with its vectors, by label, index or "SAE::LABEL"."""
        return self._run(registry.feature(name, sae))

    def similar(
        self,
        query: str | int | ArrayLike,
        *,
        sae: str | None = None,
        within: Sequence[str] = (),
        top: int = 10,
    ) -> Listing[v1.SimilarFeature]:
        """Features that write as a feature (label, index) or a vector does, by cosine."""
        return self._run(concepts.similar(query, sae, within, top))

    def encode(
        self, activations: ArrayLike, *, sae: str | None = None, top: int = 10
    ) -> list[Listing[v1.ActiveFeature]]:
        """The features that an SAE finds in each row of activations, strongest first."""
        return self._run(concepts.encode(activations, sae, top))

    def train_cavs(
        self,
        activations: ArrayLike,
        labels: Sequence[str],
        *,
        hook: str,
        model_id: str,
        method: str = "svm",
        held_out: float | None = None,
        null_trials: int | None = None,
        seed: int | None = None,
    ) -> Listing[v1.Cav]:
        """Trains a CAV per label ("svm", "mean_difference", "logistic"), and stores them with
        held-out accuracy, AUC and a test against noise (`training` of each). `trained_before` of
        the answer names those whose numbers were there already, with their first training."""
        config = concepts.training_config(
            hook, model_id, method, held_out=held_out, null_trials=null_trials, seed=seed
        )
        return self._run(concepts.train_cavs(activations, labels, config))

    def saes(
        self, *, limit: int | None = None, all_versions: bool = False, deleted: bool = False
    ) -> Listing[v1.Sae]:
        """SAEs by name, newest versions; or every version, with `deleted` those deleted too."""
        return self._run(registry.saes(limit, all_versions, deleted))

    def import_sae(
        self,
        path: str | Path | None = None,
        *,
        hub: v1.HubSource | None = None,
        name: str,
        hook: str = "",
        model_id: str = "",
        activation_scale: float | None = None,
        new_version: bool = False,
        on_progress: OnProgress | None = None,
    ) -> v1.Sae:
        """Has the registry import an SAE: a path that it can read, or a hub repository. A name
        that is another's is refused, unless as a new version."""
        source = registry.source(path, hub)
        options = _options(name, hook, model_id, activation_scale, new_version)
        return self._run(registry.import_sae(source, options, on_progress))

    def upload_sae(
        self,
        path: str | Path,
        *,
        name: str,
        hook: str = "",
        model_id: str = "",
        activation_scale: float | None = None,
        new_version: bool = False,
        on_progress: OnProgress | None = None,
    ) -> v1.Sae:
        """Sends an SAE's file or folder from here."""
        options = _options(name, hook, model_id, activation_scale, new_version)
        return self._run(registry.upload_sae(Path(path), options, on_progress))

    def delete_sae(self, name: str, *, purge: bool = False) -> int:
        """Deletes one version (`name@digest`) of an SAE or all (`name`), with labels; how many.
        `undelete_sae` brings them back; with `purge` nothing does."""
        return self._run(registry.delete_sae(name, purge))

    def undelete_sae(self, name: str) -> int:
        """Brings one deleted version (`name@digest`) of an SAE back or all (`name`); how many."""
        return self._run(registry.undelete_sae(name))

    def import_labels(
        self, path: str | Path, *, sae: str, source: str = ""
    ) -> v1.ImportFeatureLabelsResponse:
        """Sends a file of labels: `{label: index}` JSON, Neuronpedia explanations, JSON lines."""
        return self._run(registry.import_labels(Path(path), sae, source))

    def cavs(
        self,
        prefix: str = "",
        *,
        limit: int | None = None,
        all_versions: bool = False,
        deleted: bool = False,
    ) -> Listing[v1.Cav]:
        """CAVs by name, newest versions; or every version, with `deleted` those that were deleted
        too. Without their vectors."""
        return self._run(registry.cavs(prefix, limit, all_versions, deleted))

    def cav(self, name: str) -> Cav:
        """One CAV with its vectors, by `name` or `name@digest`."""
        return self._run(registry.cav(name))

    def create_cav(
        self, name: str, vectors: Mapping[str, ArrayLike], *, model_id: str = "", origin: str = ""
    ) -> Cav:
        """Stores a CAV: {"blocks.3.hook_resid_post": array}."""
        return self._run(registry.create_cav(name, vectors, model_id, origin))

    def import_cavs(
        self, path: str | Path, *, hook: str = "", model_id: str = ""
    ) -> Listing[v1.Cav]:
        """Sends a file of CAVs: the notebook's `.pt`, safetensors, GGUF control vectors, JSON."""
        return self._run(registry.import_cavs(Path(path), hook, model_id))

    def delete_cav(self, name: str, *, purge: bool = False) -> int:
        """Deletes one version (`name@digest`) or all (`name`); how many. `undelete_cav` brings them
        back; with `purge` nothing does."""
        return self._run(registry.delete_cav(name, purge))

    def undelete_cav(self, name: str) -> int:
        """Brings one deleted version (`name@digest`) back or all (`name`); how many."""
        return self._run(registry.undelete_cav(name))


class AsyncRegistry:
    """The same, to be awaited; each method is described at `Registry`."""

    def __init__(self, run: _AsyncRun) -> None:
        self._run = run

    async def search(
        self, query: str, *, sae: str | None = None, limit: int = 20
    ) -> Listing[v1.FeatureLabel]:
        """See `Registry.search`."""
        return await self._run(registry.search(query, sae, limit))

    async def features(
        self,
        sae: str,
        *,
        limit: int | None = 1000,
        index: int | None = None,
        candidates: bool = False,
    ) -> Listing[v1.FeatureLabel]:
        """See `Registry.features`."""
        return await self._run(registry.features(sae, limit, index, candidates))

    async def feature(self, name: str | int, *, sae: str | None = None) -> Feature:
        """See `Registry.feature`."""
        return await self._run(registry.feature(name, sae))

    async def similar(
        self,
        query: str | int | ArrayLike,
        *,
        sae: str | None = None,
        within: Sequence[str] = (),
        top: int = 10,
    ) -> Listing[v1.SimilarFeature]:
        """See `Registry.similar`."""
        return await self._run(concepts.similar(query, sae, within, top))

    async def encode(
        self, activations: ArrayLike, *, sae: str | None = None, top: int = 10
    ) -> list[Listing[v1.ActiveFeature]]:
        """See `Registry.encode`."""
        return await self._run(concepts.encode(activations, sae, top))

    async def train_cavs(
        self,
        activations: ArrayLike,
        labels: Sequence[str],
        *,
        hook: str,
        model_id: str,
        method: str = "svm",
        held_out: float | None = None,
        null_trials: int | None = None,
        seed: int | None = None,
    ) -> Listing[v1.Cav]:
        """See `Registry.train_cavs`."""
        config = concepts.training_config(
            hook, model_id, method, held_out=held_out, null_trials=null_trials, seed=seed
        )
        return await self._run(concepts.train_cavs(activations, labels, config))

    async def saes(
        self, *, limit: int | None = None, all_versions: bool = False, deleted: bool = False
    ) -> Listing[v1.Sae]:
        """See `Registry.saes`."""
        return await self._run(registry.saes(limit, all_versions, deleted))

    async def import_sae(
        self,
        path: str | Path | None = None,
        *,
        hub: v1.HubSource | None = None,
        name: str,
        hook: str = "",
        model_id: str = "",
        activation_scale: float | None = None,
        new_version: bool = False,
        on_progress: OnProgress | None = None,
    ) -> v1.Sae:
        """See `Registry.import_sae`."""
        source = registry.source(path, hub)
        options = _options(name, hook, model_id, activation_scale, new_version)
        return await self._run(registry.import_sae(source, options, on_progress))

    async def upload_sae(
        self,
        path: str | Path,
        *,
        name: str,
        hook: str = "",
        model_id: str = "",
        activation_scale: float | None = None,
        new_version: bool = False,
        on_progress: OnProgress | None = None,
    ) -> v1.Sae:
        """See `Registry.upload_sae`."""
        options = _options(name, hook, model_id, activation_scale, new_version)
        return await self._run(registry.upload_sae(Path(path), options, on_progress))

    async def delete_sae(self, name: str, *, purge: bool = False) -> int:
        """See `Registry.delete_sae`."""
        return await self._run(registry.delete_sae(name, purge))

    async def undelete_sae(self, name: str) -> int:
        """See `Registry.undelete_sae`."""
        return await self._run(registry.undelete_sae(name))

    async def import_labels(
        self, path: str | Path, *, sae: str, source: str = ""
    ) -> v1.ImportFeatureLabelsResponse:
        """See `Registry.import_labels`."""
        return await self._run(registry.import_labels(Path(path), sae, source))

    async def cavs(
        self,
        prefix: str = "",
        *,
        limit: int | None = None,
        all_versions: bool = False,
        deleted: bool = False,
    ) -> Listing[v1.Cav]:
        """See `Registry.cavs`."""
        return await self._run(registry.cavs(prefix, limit, all_versions, deleted))

    async def cav(self, name: str) -> Cav:
        """See `Registry.cav`."""
        return await self._run(registry.cav(name))

    async def create_cav(
        self, name: str, vectors: Mapping[str, ArrayLike], *, model_id: str = "", origin: str = ""
    ) -> Cav:
        """See `Registry.create_cav`."""
        return await self._run(registry.create_cav(name, vectors, model_id, origin))

    async def import_cavs(
        self, path: str | Path, *, hook: str = "", model_id: str = ""
    ) -> Listing[v1.Cav]:
        """See `Registry.import_cavs`."""
        return await self._run(registry.import_cavs(Path(path), hook, model_id))

    async def delete_cav(self, name: str, *, purge: bool = False) -> int:
        """See `Registry.delete_cav`."""
        return await self._run(registry.delete_cav(name, purge))

    async def undelete_cav(self, name: str) -> int:
        """See `Registry.undelete_cav`."""
        return await self._run(registry.undelete_cav(name))
