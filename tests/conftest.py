"""The option that runs tests on real servers: without it nothing but this machine is needed, with it they are fetched and started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.real.elastic_release import missing
from tests.real.elastic_servers import ElasticServers

REAL = Path(__file__).with_name("real")

# Tests share their cores: how long an example takes says nothing.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also run tests/real, and run the retriever's conformance suite on Elasticsearch")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--real") and (lacks := missing()):
        raise pytest.UsageError("tests on real servers need\n" + "\n".join(f"- {lack}" for lack in lacks))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path == REAL and not config.getoption("--real") else None


@pytest.fixture(scope="session")
def elastic_servers() -> Iterator[ElasticServers]:
    """Makes real servers; those that still run at the end are killed."""
    with ElasticServers() as servers:
        yield servers
