"""What a call can fail with, as one exception. Knows the shape of gRPC's errors and none of the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from tunetrial.common.v1 import common_pb2

_DETAILS = "grpc-status-details-bin"
_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class GeneratorError(Exception):
    """A call that the generator refused or could not finish, or that did not reach it.

    Branch on `code` and `reason`; `message` is for people and may change.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{message} [{reason or code.name}]")
        self.code = code
        """Canonical status."""
        self.reason = reason
        """Stable and UPPER_SNAKE, as the comments of the contract name it; "" when the failure came from the connection or the deadline."""
        self.message = message
        """The same for people."""
        self.metadata = dict(metadata or {})
        """Variable parts of the message; `field` where one is to blame."""
        self.retry_after_s = retry_after_s
        """Seconds after which another try makes sense; None when nothing is known about it."""


class _Ended(Protocol):
    """What errors of both kinds of channel can say."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...] | None: ...


def from_call(error: grpc.RpcError) -> GeneratorError:
    """The meaning of a call that failed."""
    ended = cast(_Ended, error)
    info, retry_after_s = error_details_pb2.ErrorInfo(), None
    for key, value in ended.trailing_metadata() or ():
        if key != _DETAILS:
            continue
        retry = error_details_pb2.RetryInfo()
        for detail in status_pb2.Status.FromString(cast(bytes, value)).details:
            detail.Unpack(info)
            if detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return GeneratorError(ended.code(), info.reason, ended.details() or "no reason given", info.metadata, retry_after_s)


def from_failure(failure: common_pb2.Failure) -> GeneratorError:
    """The meaning of one failure among many."""
    code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    wait = failure.metadata.get("retry_after_s")
    return GeneratorError(code, failure.reason, failure.message, failure.metadata, None if wait is None else float(wait))


@contextmanager
def translated() -> Iterator[None]:
    """Raises gRPC's errors as GeneratorError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_call(error) from error
