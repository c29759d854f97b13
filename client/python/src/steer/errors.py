"""What a service said when it refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Violation:
    """A field of the request that cannot be honoured."""

    field: str
    description: str


class SteerError(Exception):
    """A call failed. The classes below say how."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        violations: tuple[Violation, ...] = (),
        reason: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        #: Fields of the request, with what was wrong and what is allowed.
        self.violations = violations
        #: A word for programs, e.g. "QUEUE_FULL".
        self.reason = reason
        #: When the service says that it may be asked again.
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidRequest(SteerError):
    """Something in the request is wrong; see `violations`."""


class NotFound(SteerError):
    """No such SAE, feature, label or CAV."""


class NotPermitted(SteerError):
    """The key is missing, unknown, or does not allow this."""


class Refused(SteerError):
    """What the service holds does not allow it, e.g. a prompt for a chat template that it lacks."""


class Overloaded(SteerError):
    """The service has no room, and retries did not help; see `retry_after_s`."""


class Unavailable(SteerError):
    """The service cannot be reached, or is starting or stopping."""


class DeadlineExceeded(SteerError):
    """The time given to the call was not enough."""


class ContractError(SteerError):
    """The service answered something that the contract does not allow."""


_CLASSES: dict[grpc.StatusCode, type[SteerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: NotPermitted,
    grpc.StatusCode.PERMISSION_DENIED: NotPermitted,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.ALREADY_EXISTS: Refused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_rpc_error(error: Any) -> SteerError:
    """The error of a call as gRPC raises it, with the details that the service sent."""
    code: grpc.StatusCode = error.code()
    bad, info, retry = (
        error_details_pb2.BadRequest(),
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
    )
    for packed in _details(error.trailing_metadata()):
        for detail in (bad, info, retry):
            packed.Unpack(detail)
    violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
    retry_after_s = None
    if retry.HasField("retry_delay"):
        retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return _CLASSES.get(code, SteerError)(
        error.details() or code.name,
        code=code,
        violations=violations,
        reason=info.reason,
        retry_after_s=retry_after_s,
    )


def _details(metadata: Any) -> list[any_pb2.Any]:
    packed = next((value for key, value in metadata or () if key == DETAILS_KEY), b"")
    try:
        return list(status_pb2.Status.FromString(packed).details)
    except DecodeError:
        # The status itself is known; what cannot be read adds nothing to it.
        return []
