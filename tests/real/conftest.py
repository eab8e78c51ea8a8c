"""Tests on real servers; they run with the option --real."""

from __future__ import annotations

import pytest

from services.retriever.encoder import SentenceEncoders
from tests.contract.retriever.retriever_server import default_encoders


@pytest.fixture(scope="session")
def encoders() -> SentenceEncoders:
    return default_encoders()
