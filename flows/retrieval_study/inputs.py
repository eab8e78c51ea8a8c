"""A study and all that its results depend on: the spec, and the contents of every file that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.clients import addresses_from_environment
from flows.connections import Services
from flows.data.beir import beir_files
from flows.data.encoder import find_encoder
from flows.data_spec import SourceSpec, is_folder
from flows.fingerprint import Fingerprints
from flows.local_stack import LocalStack, running_stack
from flows.progress import Progress
from flows.retrieval_study.conditions import conditions
from flows.store import Store
from flows.study_spec import LoadedStudy

# Raise it when the code of this package changes what comes out.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Study:
    """A spec with the store that keeps its results, the retriever, and whoever listens to its progress."""

    loaded: LoadedStudy
    store: Store
    services: Services
    progress: Progress
    fingerprints: Fingerprints

    def encoder_identity(self, encoder: str) -> str:
        """What stands for an encoder in names and keys: the hash of its files, or its name."""
        name = self.loaded.encoder(encoder)
        return self.fingerprints.folder(Path(name)) if is_folder(name) else name


def open_study(loaded: LoadedStudy, home: Path, progress: Progress) -> Study:
    """The study of a spec, with the retriever by address, of a running stack, or started at the first need."""
    addresses = addresses_from_environment() or running_stack(home)
    encoders = {loaded.encoder(condition.retrieval.encoder) for condition in conditions(loaded.spec)}
    roots = tuple(Path(name) for name in sorted(encoders) if is_folder(name))
    stack = None if addresses else LocalStack(home, {}, roots, services=("retriever",))
    services = Services(addresses or {}, stack, progress.say)
    return Study(loaded, Store(str(home / "store")), services, progress, Fingerprints(home / "fingerprints.json"))


def read_inputs(study: Study) -> Mapping[str, Any]:
    """All that the results depend on, as it is now. Raises UserError when a file cannot be read."""
    loaded, fingerprints = study.loaded, study.fingerprints
    data = loaded.spec.data
    settings = [condition.retrieval for condition in conditions(loaded.spec)]
    encoders = sorted({one.encoder for one in settings})
    by_tokens = any(one.chunk.count == "encoder" for one in settings)
    return {
        "version": VERSION,
        "spec": loaded.spec.model_dump(mode="json"),
        # The dump does not tell a default from the same number written down, which is another thing to ask for.
        "test_items": data.test_items if "test_items" in data.model_fields_set else None,
        "files": {name: fingerprints.file(file) for source in data.sources for name, file in _files(loaded, source).items()},
        "corpus": {str(path): fingerprints.folder(loaded.resolve(path)) for path in data.corpus},
        "encoders": {name: study.encoder_identity(name) for name in encoders},
        "tokenizers": {name: _tokenizer(study, name) for name in encoders} if by_tokens else {},
    }


def _files(loaded: LoadedStudy, source: SourceSpec) -> dict[str, Path]:
    """The files that a source reads, by their paths from the spec."""
    path = loaded.resolve(source.path)
    if source.reader == "beir":
        files = beir_files(path, source.split or "test")
        found = [files.corpus, files.queries, files.qrels]
    elif path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file())
    else:
        return {str(source.path): path}
    return {str(source.path / file.relative_to(path)): file for file in found}


def _tokenizer(study: Study, encoder: str) -> str:
    name = study.loaded.encoder(encoder)
    return study.fingerprints.file(find_encoder(name, is_folder(name)).tokenizer)
