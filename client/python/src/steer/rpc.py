"""The calls of both services, and plans made of them.

A *plan* is a generator that yields calls and is sent their answers. It says what is asked
in which order and knows nothing about threads or event loops, so the synchronous and the
asynchronous client run the same plans.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from steer import v1

Question = TypeVar("Question", bound=Message)
Answer = TypeVar("Answer", bound=Message)
Result = TypeVar("Result")


class Service(Enum):
    """One of the two services."""

    WORKER = "steering.v1.ModelWorkerService"
    REGISTRY = "steering.v1.FeatureRegistryService"


@dataclass(frozen=True)
class Rpc(Generic[Question, Answer]):
    """One method of a service."""

    service: Service
    name: str
    question: type[Question]
    answer: type[Answer]
    streams_questions: bool = False
    streams_answers: bool = False
    #: Whether asking twice is the same as asking once.
    retriable: bool = True

    @property
    def streams(self) -> bool:
        """Whether it takes as long as there is to send or to answer."""
        return self.streams_questions or self.streams_answers

    @property
    def path(self) -> str:
        """Where it is on the wire."""
        return f"/{self.service.value}/{self.name}"


@dataclass(frozen=True)
class Call:
    """One call of a plan; it is answered with the last message that the service sends."""

    rpc: Rpc[Any, Any]
    #: A message, or messages where the method takes a stream.
    question: Message | Iterable[Message] | AsyncIterable[Message]
    #: Told every message of an answer that is a stream.
    on_message: Callable[[Any], object] | None = None


Plan = Generator[Call, Any, Result]


def ask(rpc: Rpc[Question, Answer], question: Question) -> Plan[Answer]:
    """The plan of one call."""
    answer: Answer = yield Call(rpc, question)
    return answer


_W, _R = Service.WORKER, Service.REGISTRY
GET_MODEL = Rpc(_W, "GetModel", v1.GetModelRequest, v1.GetModelResponse)
GENERATE = Rpc(_W, "Generate", v1.GenerateRequest, v1.GenerateResponse, streams_answers=True)
TOKENIZE = Rpc(_W, "Tokenize", v1.TokenizeRequest, v1.TokenizeResponse)
CAPTURE = Rpc(
    _W,
    "CaptureActivations",
    v1.CaptureActivationsRequest,
    v1.CaptureActivationsResponse,
    streams_questions=True,
    streams_answers=True,
    retriable=False,
)
SCORE_TEXT = Rpc(_W, "ScoreText", v1.ScoreTextRequest, v1.ScoreTextResponse)
PROJECT_DIRECTION = Rpc(
    _W, "ProjectDirection", v1.ProjectDirectionRequest, v1.ProjectDirectionResponse
)

IMPORT_SAE = Rpc(
    _R,
    "ImportSae",
    v1.ImportSaeRequest,
    v1.ImportSaeResponse,
    streams_answers=True,
    retriable=False,
)
UPLOAD_SAE = Rpc(
    _R,
    "UploadSae",
    v1.UploadSaeRequest,
    v1.UploadSaeResponse,
    streams_questions=True,
    streams_answers=True,
    retriable=False,
)
LIST_SAES = Rpc(_R, "ListSaes", v1.ListSaesRequest, v1.ListSaesResponse)
GET_SAE = Rpc(_R, "GetSae", v1.GetSaeRequest, v1.GetSaeResponse)
DELETE_SAE = Rpc(_R, "DeleteSae", v1.DeleteSaeRequest, v1.DeleteSaeResponse, retriable=False)
UNDELETE_SAE = Rpc(_R, "UndeleteSae", v1.UndeleteSaeRequest, v1.UndeleteSaeResponse)
SEARCH_FEATURES = Rpc(_R, "SearchFeatures", v1.SearchFeaturesRequest, v1.SearchFeaturesResponse)
LIST_FEATURES = Rpc(_R, "ListFeatures", v1.ListFeaturesRequest, v1.ListFeaturesResponse)
GET_FEATURES = Rpc(_R, "GetFeatures", v1.GetFeaturesRequest, v1.GetFeaturesResponse)
FIND_SIMILAR_FEATURES = Rpc(
    _R, "FindSimilarFeatures", v1.FindSimilarFeaturesRequest, v1.FindSimilarFeaturesResponse
)
ENCODE_ACTIVATIONS = Rpc(
    _R, "EncodeActivations", v1.EncodeActivationsRequest, v1.EncodeActivationsResponse
)
TRAIN_CAVS = Rpc(
    _R,
    "TrainCavs",
    v1.TrainCavsRequest,
    v1.TrainCavsResponse,
    streams_questions=True,
    retriable=False,
)
IMPORT_FEATURE_LABELS = Rpc(
    _R,
    "ImportFeatureLabels",
    v1.ImportFeatureLabelsRequest,
    v1.ImportFeatureLabelsResponse,
    streams_questions=True,
    retriable=False,
)
CREATE_CAV = Rpc(_R, "CreateCav", v1.CreateCavRequest, v1.CreateCavResponse)
IMPORT_CAVS = Rpc(
    _R,
    "ImportCavs",
    v1.ImportCavsRequest,
    v1.ImportCavsResponse,
    streams_questions=True,
    retriable=False,
)
LIST_CAVS = Rpc(_R, "ListCavs", v1.ListCavsRequest, v1.ListCavsResponse)
GET_CAV = Rpc(_R, "GetCav", v1.GetCavRequest, v1.GetCavResponse)
DELETE_CAV = Rpc(_R, "DeleteCav", v1.DeleteCavRequest, v1.DeleteCavResponse, retriable=False)
UNDELETE_CAV = Rpc(_R, "UndeleteCav", v1.UndeleteCavRequest, v1.UndeleteCavResponse)
