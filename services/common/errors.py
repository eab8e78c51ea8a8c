"""What can go wrong, in the words of the domain. Knows nothing of gRPC; `server.py` maps each class to a status."""

from __future__ import annotations


class TunetrialError(Exception):
    """Base of all expected errors. `reason` is stable and UPPER_SNAKE; `metadata` holds every variable part of the message."""

    def __init__(self, reason: str, message: str, /, **metadata: object) -> None:
        self.reason = reason
        self.metadata = {key: str(value) for key, value in metadata.items()}
        self.message = message.format(**self.metadata)
        super().__init__(self.message)


class InvalidArgument(TunetrialError):
    """The request can never succeed as it is. Name the field in `field` where one is to blame."""


class NotFound(TunetrialError):
    """What was named does not exist."""


class AlreadyExists(TunetrialError):
    """The name is taken by something else."""


class FailedPrecondition(TunetrialError):
    """Right in itself, but not in the state that things are in."""


class Aborted(TunetrialError):
    """Somebody else was quicker; read again and repeat."""


class ResourceExhausted(TunetrialError):
    """A limit was reached; `retry_after_s` in the metadata says when to come back, where that is known."""


class Unavailable(TunetrialError):
    """A part that is needed is away for now; the same call may succeed later."""


class DeadlineExceeded(TunetrialError):
    """The time given was not enough."""


class Unauthenticated(TunetrialError):
    """No valid credentials came with the call."""


class PermissionDenied(TunetrialError):
    """The credentials do not allow this call."""


class Unimplemented(TunetrialError):
    """The contract knows it, this service (as configured) does not do it."""


class Internal(TunetrialError):
    """A part broke its promise; a fault of ours."""
