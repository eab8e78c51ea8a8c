"""Adapters in an object store: uploaded under the job's own key, and there for others from the moment that manifest.json is put.

    <url>/<name>/manifest.json      made once, by whoever comes first; says which folder is the adapter, and the sha256 of each file
    <url>/<name>/<job id>/...       that folder, as it would be on disk

Knows no training.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem

from services.common.errors import AlreadyExists, FailedPrecondition, TunetrialError, Unavailable
from services.common.object_store import opened, reaching, read_or_none, sha256_of
from services.trainer.domain import Adapter, Store
from services.trainer.inputs import file_sha256
from services.trainer.manifest import MANIFEST, AdapterFiles
from services.trainer.records import ADAPTER

_Answer = TypeVar("_Answer")
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0


class StoredAdapters:
    """The published adapters of an object store, and those of the trainer's own folder: what a provider keeps, and what was made before.

    Questions to the store may raise FailedPrecondition STORE_REFUSED and Unavailable STORE_UNAVAILABLE.
    """

    def __init__(self, store: Store, local: AdapterFiles) -> None:
        """Raises FailedPrecondition LIBRARY_MISSING, STORE_REFUSED."""
        self.store, self._local = store, local
        self._files, self._root = opened(store.url, store.options)

    @property
    def path(self) -> str:
        """The trainer's own folder."""
        return self._local.path

    def exists(self, name: str) -> bool:
        """Whether something is published under `name`."""
        return self._local.exists(name) or self._manifest(name) is not None

    def published(self, name: str, job_id: str) -> Adapter | None:
        """The adapter `name` if that job made it."""
        return self._local.published(name, job_id) or self._adapter(name, "job_id", job_id)

    def of_work(self, name: str, work: str) -> Adapter | None:
        """The adapter `name` if that work makes it, whoever did it."""
        return self._local.of_work(name, work) or self._adapter(name, "work", work)

    def discard_partial(self, job_id: str | None = None) -> None:
        """Of the folder only: nobody sees what is half uploaded, and whoever publishes under the name next removes it."""
        self._local.discard_partial(job_id)

    def _adapter(self, name: str, key: str, value: str) -> Adapter | None:
        manifest = self._manifest(name)
        if manifest is None or manifest.get(key) != value:
            return None
        return ADAPTER.validate_python({**manifest, "uri": uri_of(self.store, name)})

    def _manifest(self, name: str) -> dict[str, Any] | None:
        with reaching(self.store.url):
            return _read(self._files, f"{self._root}/{name}/{MANIFEST}")


def uri_of(store: Store, name: str) -> str:
    """Where an adapter is, or will be."""
    return f"{store.url.rstrip('/')}/{name}"


class Upload:
    """One adapter on its way into a store."""

    def __init__(self, store: Store, name: str, job_id: str, work: str) -> None:
        """Raises FailedPrecondition LIBRARY_MISSING, STORE_REFUSED."""
        self._store, self._name, self._job_id, self._work = store, name, job_id, work
        self._files, root = opened(store.url, store.options)
        self._home = f"{root}/{name}"
        self._uploaded: dict[str, dict[str, Any]] = {}

    def check(self) -> None:
        """Looks whether there is a way to publish.

        Raises FailedPrecondition STORE_REFUSED, AlreadyExists ADAPTER_NAME_TAKEN, Unavailable STORE_UNAVAILABLE.
        """
        with self._explained():
            if self._is_published():
                return
            probe = f"{self._home}/{self._job_id}/.probe"
            self._files.pipe_file(probe, b"")
            # Who may write may not always remove; it is in nobody's way.
            with contextlib.suppress(Exception):
                self._files.rm_file(probe)

    def publish(self, folder: Path) -> None:
        """Uploads a finished folder, and makes it visible when all of it is there; again, should it have been interrupted.

        Waits for a store that is away as long as its settings say. Raises what `check` does; then nothing is visible.
        """
        try:
            self._patiently(lambda: self._publish(folder))
        except AlreadyExists:
            with contextlib.suppress(Exception):  # nobody sees it, and whoever is next removes it
                self._files.rm(f"{self._home}/{self._job_id}", recursive=True)
            raise

    def _publish(self, folder: Path) -> None:
        with self._explained():
            if self._is_published():
                return
            try:
                self._put_all(folder)
            except FileNotFoundError:
                # Somebody who was quicker removed what was uploaded here; or else there is no such bucket.
                if not self._is_published():
                    raise
            if not self._is_published():
                raise Unavailable("STORE_UNAVAILABLE", "{url}: what was put there is not there", url=self._store.url)
            # Nobody sees what stays.
            with contextlib.suppress(Exception):
                self._tidy()

    def _put_all(self, folder: Path) -> None:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder).as_posix()
            if name not in self._uploaded:
                self._uploaded[name] = self._put(file, f"{self._home}/{self._job_id}/{name}")
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content = json.dumps({**manifest, "folder": self._job_id, "files": self._uploaded}, indent=1, allow_nan=False) + "\n"
        # It exists where somebody was quicker, and when an answer was lost and the library asked again.
        with contextlib.suppress(FileExistsError):
            self._files.pipe_file(f"{self._home}/{MANIFEST}", content.encode(), mode="create")

    def _put(self, file: Path, target: str) -> dict[str, Any]:
        sha256 = file_sha256(file)
        self._files.put_file(str(file), target)
        found = sha256_of(self._files, target)
        if found != sha256:
            message = "{url}: {file} has sha256 {found} there instead of {sha256}"
            raise Unavailable("STORE_UNAVAILABLE", message, url=self._store.url, file=file.name, found=found, sha256=sha256)
        return {"sha256": sha256, "bytes": file.stat().st_size}

    def _is_published(self) -> bool:
        """Raises AlreadyExists ADAPTER_NAME_TAKEN where the name is that of other work."""
        manifest = _read(self._files, f"{self._home}/{MANIFEST}")
        if manifest is None:
            return False
        if manifest.get("work") != self._work:
            message = "{url} exists already and is of other work (job {job}): choose another adapter_name, or delete it there"
            url, job = uri_of(self._store, self._name), manifest.get("job_id")
            raise AlreadyExists("ADAPTER_NAME_TAKEN", message, url=url, job=job)
        return True

    def _tidy(self) -> None:
        """Removes what other jobs left half uploaded under the name: it will never be visible. What is not of jobs is somebody else's."""
        published = (_read(self._files, f"{self._home}/{MANIFEST}") or {}).get("folder")
        for folder in self._files.ls(self._home, detail=False):
            name = folder.rstrip("/").rpartition("/")[2]
            if published and name != published and _JOB_ID.fullmatch(name):
                self._files.rm(folder, recursive=True)

    def _explained(self) -> Any:
        return reaching(self._store.url)

    def _patiently(self, act: Callable[[], _Answer]) -> _Answer:
        began, wait_s = time.monotonic(), _FIRST_WAIT_S
        while True:
            try:
                return act()
            except Unavailable as error:
                if time.monotonic() - began + wait_s > self._store.patience_s:
                    raise kept(error) from error
                print(error.message, flush=True)
            except FileNotFoundError as error:
                why = FailedPrecondition("STORE_REFUSED", "{url}: there is no such bucket", url=self._store.url)
                raise kept(why) from error
            except TunetrialError as error:
                raise kept(error) from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def kept(error: TunetrialError) -> TunetrialError:
    """The same error, with what becomes of the adapter."""
    message = "{said}. What was trained is kept: created again, the same job publishes it without training"
    return type(error)(error.reason, message, **error.metadata | {"said": error.message})


def _read(files: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    content = read_or_none(files, path)
    try:
        manifest = json.loads(content) if content is not None else None
    except ValueError:
        manifest = {}
    return manifest if manifest is None or isinstance(manifest, dict) else {}
