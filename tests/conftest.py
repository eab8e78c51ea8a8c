"""The options that run tests on real servers: without them nothing but this machine is needed, with them they are fetched and started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from flows.prefect_api import local_api
from tests.kubernetes import binaries
from tests.real.elastic_release import missing
from tests.real.elastic_servers import ElasticServers

REAL, KUBERNETES = (Path(__file__).with_name(name) for name in ("real", "kubernetes"))

# Tests share their cores: how long an example takes says nothing.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also run tests/real, and run the retriever's conformance suite on Elasticsearch")
    parser.addoption("--kubernetes", action="store_true", help="also run tests/kubernetes, on a control plane that is built first")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--real") and (lacks := missing()):
        raise pytest.UsageError("tests on real servers need\n" + "\n".join(f"- {lack}" for lack in lacks))
    if config.getoption("--kubernetes") and (lack := binaries.missing()):
        raise pytest.UsageError(f"tests on Kubernetes need\n- {lack}")
    if config.getoption("--kubernetes") and not hasattr(config, "workerinput"):
        binaries.programs()  # here, where no test's time is counted


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    left_out = {folder for folder, option in ((REAL, "--real"), (KUBERNETES, "--kubernetes")) if not config.getoption(option)}
    return True if collection_path in left_out else None


@pytest.fixture(scope="session")
def elastic_servers() -> Iterator[ElasticServers]:
    """Makes real servers; those that still run at the end are killed."""
    with ElasticServers() as servers:
        yield servers


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A single API of Prefect for all commands: each would else start its own, which takes longer than most trials of tests."""
    before = dict(os.environ)
    with local_api(tmp_path_factory.mktemp("prefect"), print) as wait_for_api:
        wait_for_api()
        url = os.environ["PREFECT_API_URL"]
        os.environ.clear()
        os.environ.update(before, PREFECT_API_URL=url)
        yield
    os.environ.clear()
    os.environ.update(before)
