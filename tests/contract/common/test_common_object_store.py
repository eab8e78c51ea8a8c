"""Object stores: which URLs a request may name, what their libraries are told, and what goes wrong in whose words."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument, Unavailable
from services.common.object_store import reaching, read_options
from services.common.security import allowed_uri

ROOTS = "/somewhere:s3://bucket/adapters/:gs://other:/elsewhere"


@pytest.mark.parametrize("uri", ["s3://bucket/adapters/one", "s3://bucket/adapters/one/", "s3://bucket/adapters", "gs://other/a/b"])
def test_a_url_under_a_root_is_allowed_as_it_is(uri: str) -> None:
    assert allowed_uri(uri, ROOTS) == uri.rstrip("/")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/adapters2/one",
        "s3://bucket",
        "s3a://bucket/adapters/one",
        "gs://other2/a",
        "gs://other/../bucket",
        "gs://other/a//b",
        "gs://other/a?b",
        "gs://other/a#b",
        "gs://other/a%2f..",
        "gs://other/a\nb",
        "simplecache::gs://other/a",
        "s3:/bucket/adapters/one",
        "s3",
    ],
)
def test_other_urls_are_refused(uri: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        allowed_uri(uri, ROOTS)
    assert caught.value.reason == "URI_NOT_ALLOWED"


def test_paths_are_allowed_beside_urls(tmp_path: Path) -> None:
    assert allowed_uri(f"{tmp_path}/a", f"s3://bucket:{tmp_path}") == tmp_path.resolve() / "a"
    assert allowed_uri(f"file://{tmp_path}/a", f"file://{tmp_path}:s3://bucket") == tmp_path.resolve() / "a"


def test_options_are_an_object_without_secrets() -> None:
    assert read_options("") == {}
    assert read_options('{"endpoint_url": "https://here"}') == {"endpoint_url": "https://here"}
    for text in ("[]", "x", '{"secret": "hunter2"}', '{"account_key": "hunter2"}', '{"client_kwargs": {"aws_secret": "hunter2"}}'):
        with pytest.raises(ValueError, match=r"expected|Expecting|credentials") as caught:
            read_options(text)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError("Forbidden"), FailedPrecondition),
        (OSError(errno.EINVAL, "bad bucket name"), FailedPrecondition),
        (OSError(errno.EBUSY, "slow down"), Unavailable),
        (ConnectionResetError("gone"), Unavailable),
        (TimeoutError("late"), Unavailable),
        (FileNotFoundError("x"), FileNotFoundError),
        (FileExistsError("x"), FileExistsError),
        (FailedPrecondition("REASON", "said"), FailedPrecondition),
    ],
)
def test_what_goes_wrong_is_for_good_or_for_now(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind), reaching("s3://bucket"):
        raise error


def test_missing_credentials_are_for_good_whatever_the_library_calls_them() -> None:
    class NoCredentialsError(Exception):
        pass

    with pytest.raises(FailedPrecondition, match="look at the credentials"), reaching("s3://bucket"):
        raise NoCredentialsError("unable to locate credentials")
