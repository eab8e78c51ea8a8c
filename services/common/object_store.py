"""Object stores by fsspec: opened by their URL, and what goes wrong there in our words. Knows no service and no adapter.

Stores keep no folders and rename nothing: an object is there whole or not, and that is all that is relied on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from services.common.errors import FailedPrecondition, TunetrialError, Unavailable

VARIABLES = ("AWS_", "S3_", "GOOGLE_", "GCE_", "CLOUDSDK_", "AZURE_", "FSSPEC_")
"""Beginnings of the names of variables by which the libraries of stores find endpoints and credentials."""

_BLOCK = 8 << 20
# The library tries five times, and longer each time; below it botocore would do the same once more.
_S3_RETRIES = {"retries": {"mode": "standard", "max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}
_SECRETS = ("secret", "key", "token", "password", "credential", "connection_string")
# Asked again, the store would say the same.
_FOR_GOOD = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG, errno.EMSGSIZE)


def is_url(place: str) -> bool:
    """Whether `place` is in an object store; paths and file: URIs are not."""
    scheme, there, _ = place.partition("://")
    return bool(there) and scheme != "file"


def read_options(text: str) -> dict[str, Any]:
    """TUNETRIAL_STORE_OPTIONS as fsspec takes them. Raises ValueError, for secrets too: jobs' orders show them."""
    options = json.loads(text) if text.strip() else {}
    if not isinstance(options, dict):
        raise ValueError('expected a JSON object: {"endpoint_url": "https://..."}')
    secret = sorted(name for name in _names(options) if any(part in name.lower() for part in _SECRETS))
    if secret:
        raise ValueError(f"{', '.join(secret)}: credentials belong into the variables of the store's library, as AWS_SECRET_ACCESS_KEY")
    return options


def _names(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        yield name
        if isinstance(value, Mapping):
            yield from _names(value)


def opened(url: str, options: Mapping[str, Any]) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path on it. Contacts nothing. Raises FailedPrecondition LIBRARY_MISSING or STORE_REFUSED."""
    protocol = url.partition("://")[0]
    given: dict[str, Any] = {"config_kwargs": _S3_RETRIES} if protocol in ("s3", "s3a") else {}
    try:
        made, path = url_to_fs(url, **(given | dict(options)), skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        message = "{url} needs a library that is not there: {why}"
        raise FailedPrecondition("LIBRARY_MISSING", message, url=url, why=error) from error
    except (ValueError, TypeError) as error:
        message = "{url} cannot be opened: {why}; look at the URL and at TUNETRIAL_STORE_OPTIONS"
        raise FailedPrecondition("STORE_REFUSED", message, url=url, why=error) from error
    return made, path.rstrip("/")


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """What goes wrong inside, in our words; FileNotFoundError and FileExistsError go through.

    Raises FailedPrecondition STORE_REFUSED where trying again helps nobody, Unavailable STORE_UNAVAILABLE otherwise.
    """
    try:
        yield
    except (TunetrialError, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"[:500]
        if _is_for_good(error):
            message = "{url}: the object store refuses ({why}): look at the credentials, what they allow, and TUNETRIAL_STORE_OPTIONS"
            raise FailedPrecondition("STORE_REFUSED", message, url=url, why=why) from error
        message = "{url}: the object store does not answer: {why}"
        raise Unavailable("STORE_UNAVAILABLE", message, url=url, why=why, retry_after_s=5) from error


def _is_for_good(error: BaseException | None) -> bool:
    while error is not None:
        # Each library has classes of its own for credentials that are missing or wrong.
        named = any(part in type(error).__name__ for part in ("Credential", "Authentication", "ParamValidation"))
        if named or isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in _FOR_GOOD):
            return True
        error = error.__cause__
    return False


def read_or_none(files: AbstractFileSystem, path: str) -> bytes | None:
    """An object, None where there is none."""
    try:
        content: bytes = files.cat_file(path)
    except FileNotFoundError:
        return None
    return content


def sha256_of(files: AbstractFileSystem, path: str) -> str:
    """Hash of an object, read in pieces. Raises FileNotFoundError."""
    digest = hashlib.sha256()
    with files.open(path, "rb", block_size=_BLOCK, cache_type="none") as opened_file:
        while piece := opened_file.read(_BLOCK):
            digest.update(piece)
    return digest.hexdigest()
