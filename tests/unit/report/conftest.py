"""One made-up trial and its page, for all tests of the report."""

import pytest
from report_trials import trial

from flows.report.content import TrialReport
from flows.report.page import render


@pytest.fixture(scope="session")
def report() -> TrialReport:
    return trial()


@pytest.fixture(scope="session")
def page(report: TrialReport) -> str:
    return render(report)
