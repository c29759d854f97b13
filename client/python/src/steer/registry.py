"""Plans of the registry's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import ArrayLike, NDArray

from steer import checks, display, edits, rpc, v1
from steer.edits import FeatureRef
from steer.errors import ContractError
from steer.rpc import Answer, Call, Plan, Question, Rpc

#: Bytes of a file per message; the contract allows 1 MiB.
CHUNK_BYTES = 512 << 10

Entry = TypeVar("Entry", bound=Message)
OnProgress = Callable[[v1.ImportProgress], None]


FEATURES = ("label", "feature_index", "sae_id", "strength", "score", "source")
SAES = ("sae_id", "hook_name", "model_id", "d_in", "d_sae", "architecture", "label_count")
CAVS = ("name", "digest", "model_id", "origin")


class Listing(list[Entry], Generic[Entry]):
    """Messages of a listing. In a notebook it is a table."""

    def __init__(
        self,
        entries: Iterable[Entry],
        columns: tuple[str, ...],
        *,
        truncated: str = "",
        trained_before: Iterable[str] = (),
    ) -> None:
        super().__init__(entries)
        self.columns = columns
        #: Why there may be more that fits than is listed; empty if this is all.
        self.truncated = truncated
        #: Names of trained CAVs whose numbers were stored before. A version is immutable: their
        #: `training` is the first one, not this.
        self.trained_before = list(trained_before)

    def __repr__(self) -> str:
        # A feature may have no label.
        first, *_ = self.columns
        shown = (getattr(e, first) or f"#{getattr(e, 'feature_index', '')}" for e in self[:5])
        names = ", ".join(shown)
        remarks = "".join(f"; {remark}" for remark in self._remarks())
        return f"<{len(self)} entries: {names}{', …' if len(self) > 5 else ''}{remarks}>"

    def _remarks(self) -> list[str]:
        """What is to be known beside the entries."""
        remarks = [self.truncated] if self.truncated else []
        if self.trained_before:
            names = ", ".join(self.trained_before)
            remarks.append(f"stored before, and shown with their first training: {names}")
        return remarks

    def to_pandas(self) -> Any:
        """A row per entry. Needs the extra `pandas`."""
        import pandas as pd

        return pd.DataFrame(self._rows(), columns=self.columns)

    def _rows(self) -> list[list[Any]]:
        return [[getattr(entry, column) for column in self.columns] for entry in self]

    def _repr_html_(self) -> str:
        rows = [[_short(value) for value in row] for row in self._rows()]
        return display.listing(self.columns, rows, self._remarks())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Feature:
    """An SAE feature with its vectors."""

    #: What a worker takes, as the registry sent it.
    message: v1.SaeFeature = field(repr=False)
    label: str
    sae_id: str
    index: int
    hook_name: str
    max_activation: float | None
    #: What it does on a corpus, where that was computed (`steer features stats`).
    statistics: v1.FeatureStatistics | None = field(default=None, repr=False)

    @classmethod
    def of(cls, message: v1.SaeFeature, statistics: v1.FeatureStatistics | None = None) -> Feature:
        """Wraps the registry's messages."""
        largest = message.max_activation if message.HasField("max_activation") else None
        return cls(
            message,
            message.label,
            message.sae_id,
            message.feature_index,
            message.hook_name,
            largest,
            statistics if statistics is not None and statistics.digest else None,
        )

    @property
    def encoder(self) -> NDArray[np.float32]:
        """W_enc[:, index]."""
        return np.array(self.message.encoder, dtype=np.float32)

    @property
    def decoder(self) -> NDArray[np.float32]:
        """W_dec[index]."""
        return np.array(self.message.decoder, dtype=np.float32)


@dataclass(frozen=True)
class Cav:
    """A CAV: a vector per hook point."""

    message: v1.Cav = field(repr=False)
    name: str
    digest: str
    model_id: str
    vectors: dict[str, NDArray[np.float32]] = field(repr=False)

    @classmethod
    def of(cls, message: v1.Cav) -> Cav:
        """Wraps the registry's message."""
        vectors = {
            one.hook_name: np.array(one.vector.values, dtype=np.float32)
            for one in message.directions
        }
        return cls(message, message.name, message.digest, message.model_id, vectors)

    @property
    def vector(self) -> NDArray[np.float32]:
        """The vector of a CAV that has one hook point."""
        if len(self.vectors) != 1:
            raise ValueError(f"CAV {self.name!r} has several vectors: {', '.join(self.vectors)}")
        return next(iter(self.vectors.values()))


def search(query: str, sae: str | None, limit: int) -> Plan[Listing[v1.FeatureLabel]]:
    """Labels that match a text, best first."""
    request = v1.SearchFeaturesRequest(query=query, sae_id=sae or "")
    return (yield from _pages(rpc.SEARCH_FEATURES, request, "features", limit, FEATURES))


def features(
    sae: str, limit: int | None, index: int | None, candidates: bool
) -> Plan[Listing[v1.FeatureLabel]]:
    """Labelled features of an SAE by index."""
    index = None if index is None else checks.whole(index, "index")
    request = v1.ListFeaturesRequest(sae_id=sae, feature_index=index, include_candidates=candidates)
    return (yield from _pages(rpc.LIST_FEATURES, request, "features", limit, FEATURES))


def saes(limit: int | None, all_versions: bool, deleted: bool) -> Plan[Listing[v1.Sae]]:
    """SAEs by name, or versions in the order of storing."""
    request = v1.ListSaesRequest(all_versions=all_versions, show_deleted=deleted)
    return (yield from _pages(rpc.LIST_SAES, request, "saes", limit, SAES))


def cavs(
    prefix: str, limit: int | None, all_versions: bool, deleted: bool
) -> Plan[Listing[v1.Cav]]:
    """CAVs by name, or versions in the order of storing."""
    request = v1.ListCavsRequest(prefix=prefix, all_versions=all_versions, show_deleted=deleted)
    return (yield from _pages(rpc.LIST_CAVS, request, "cavs", limit, CAVS))


def _pages(
    method: Rpc[Any, Any], request: Any, entries: str, limit: int | None, columns: tuple[str, ...]
) -> Plan[Listing[Any]]:
    limit = None if limit is None else checks.whole(limit, "limit")
    found: list[Any] = []
    truncated = ""
    while limit is None or len(found) < limit:
        request.page_size = 1000 if limit is None else min(1000, limit - len(found))
        page = yield Call(method, request)
        found.extend(getattr(page, entries))
        # Only a search says so.
        if getattr(page, "truncated", False):
            truncated = "there may be more: the words of the query stand for too many; add another"
        if not page.next_page_token:
            return Listing(found, columns, truncated=truncated)
        request.page_token = page.next_page_token
    return Listing(found, columns, truncated=f"the first {len(found)}; more with a larger limit")


def feature(name: str | int, sae: str | None) -> Plan[Feature]:
    """One feature with its vectors."""
    refs = [FeatureRef.parse(name).message(sae)]
    request = v1.GetFeaturesRequest(features=refs, include_statistics=True)
    answer = yield from rpc.ask(rpc.GET_FEATURES, request)
    if len(answer.features) != 1:
        raise ContractError(f"GetFeatures answered {len(answer.features)} of 1 features")
    return Feature.of(answer.features[0], next(iter(answer.statistics), None))


def cav(name: str) -> Plan[Cav]:
    """One CAV with its vectors."""
    answer = yield from rpc.ask(rpc.GET_CAV, v1.GetCavRequest(name=name))
    return Cav.of(answer.cav)


def create_cav(
    name: str, vectors: Mapping[str, ArrayLike], model_id: str, origin: str
) -> Plan[Cav]:
    """Stores a CAV, a vector per hook point."""
    request = v1.CreateCavRequest(name=name, model_id=model_id, origin=origin)
    for hook_name, vector in vectors.items():
        numbers = v1.Vector(name=name, values=edits.vector_of(vector))
        request.directions.append(v1.CavDirection(hook_name=hook_name, vector=numbers))
    answer = yield from rpc.ask(rpc.CREATE_CAV, request)
    return Cav.of(answer.cav)


def delete_sae(name: str, purge: bool) -> Plan[int]:
    """Deletes versions of an SAE; how many."""
    answer = yield from rpc.ask(rpc.DELETE_SAE, v1.DeleteSaeRequest(sae_id=name, purge=purge))
    return answer.removed_count


def undelete_sae(name: str) -> Plan[int]:
    """Brings versions of an SAE back; how many."""
    answer = yield from rpc.ask(rpc.UNDELETE_SAE, v1.UndeleteSaeRequest(sae_id=name))
    return answer.restored_count


def delete_cav(name: str, purge: bool) -> Plan[int]:
    """Deletes versions of a CAV; how many."""
    answer = yield from rpc.ask(rpc.DELETE_CAV, v1.DeleteCavRequest(name=name, purge=purge))
    return answer.removed_count


def undelete_cav(name: str) -> Plan[int]:
    """Brings versions of a CAV back; how many."""
    answer = yield from rpc.ask(rpc.UNDELETE_CAV, v1.UndeleteCavRequest(name=name))
    return answer.restored_count


def source(path: str | Path | None, hub: v1.HubSource | None) -> v1.HubSource | str:
    """Where an import comes from: exactly one of the two."""
    if path is not None and hub is None:
        return str(path)
    if hub is not None and path is None:
        return hub
    raise ValueError("import_sae: give one of path, hub")


def import_sae(
    source: v1.HubSource | str, options: v1.SaeImportOptions, on_progress: OnProgress | None
) -> Plan[v1.Sae]:
    """Has the registry import an SAE that it can read itself."""
    request = v1.ImportSaeRequest(options=options)
    if isinstance(source, str):
        request.path = source
    else:
        request.hub.CopyFrom(source)
    return (yield from _follow_import(rpc.IMPORT_SAE, request, on_progress))


def upload_sae(
    path: Path, options: v1.SaeImportOptions, on_progress: OnProgress | None
) -> Plan[v1.Sae]:
    """Sends an SAE's files: one, or all in a folder, hidden ones left out."""

    files = _files(path)

    def messages() -> Iterator[v1.UploadSaeRequest]:
        yield v1.UploadSaeRequest(options=options)
        for name, file in files:
            yield v1.UploadSaeRequest(file_name=name)
            for chunk in _chunks(file):
                yield v1.UploadSaeRequest(chunk=chunk)

    return (yield from _follow_import(rpc.UPLOAD_SAE, messages(), on_progress))


def _follow_import(
    method: Rpc[Any, Any], question: Any, on_progress: OnProgress | None
) -> Plan[v1.Sae]:
    def on_message(message: Any) -> None:
        if on_progress is not None and message.WhichOneof("event") == "progress":
            on_progress(message.progress)

    last = yield Call(method, question, on_message)
    if last is None or last.WhichOneof("event") != "sae":
        raise ContractError("the registry ended an import without the SAE")
    sae: v1.Sae = last.sae
    return sae


def import_labels(path: Path, sae: str, source: str) -> Plan[v1.ImportFeatureLabelsResponse]:
    """Sends a file of labels. All or nothing."""
    _readable(path)

    def messages() -> Iterator[v1.ImportFeatureLabelsRequest]:
        header = v1.LabelImportHeader(sae_id=sae, source=source)
        yield v1.ImportFeatureLabelsRequest(header=header)
        for chunk in _chunks(path):
            yield v1.ImportFeatureLabelsRequest(chunk=chunk)

    return (yield from _send(rpc.IMPORT_FEATURE_LABELS, messages()))


def import_cavs(path: Path, hook: str, model_id: str) -> Plan[Listing[v1.Cav]]:
    """Sends a file of CAVs. All or nothing."""
    _readable(path)

    def messages() -> Iterator[v1.ImportCavsRequest]:
        header = v1.CavImportHeader(hook_name=hook, model_id=model_id, file_name=path.name)
        yield v1.ImportCavsRequest(header=header)
        for chunk in _chunks(path):
            yield v1.ImportCavsRequest(chunk=chunk)

    answer = yield from _send(rpc.IMPORT_CAVS, messages())
    return Listing(answer.cavs, columns=CAVS)


def _send(method: Rpc[Question, Answer], messages: Iterator[Question]) -> Plan[Answer]:
    answer: Answer = yield Call(method, messages)
    return answer


def _files(path: Path) -> Sequence[tuple[str, Path]]:
    if not path.is_dir():
        return [(path.name, _readable(path))]
    found = [
        (file.relative_to(path).as_posix(), file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    ]
    if not found:
        raise FileNotFoundError(f"{path}: the folder is empty")
    return found


def _readable(path: Path) -> Path:
    """Fails here, where the error has a name, rather than in the thread that sends."""
    path.open("rb").close()
    return path


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
