"""The page as a browser gets it: safe with hostile texts, whole without network, readable without script."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from bs4 import BeautifulSoup
from report_trials import HOSTILE, trial

from flows.report.content import TrialReport
from flows.report.page import render


@pytest.fixture(scope="module")
def soup(page: str) -> BeautifulSoup:
    return BeautifulSoup(page, "html.parser")


def visible(page: str) -> str:
    """All text outside script and style."""
    soup = BeautifulSoup(page, "html.parser")
    for element in soup(["script", "style", "svg"]):
        element.decompose()
    return soup.get_text(" ", strip=True)


def test_a_hostile_answer_stays_text_inside_its_data_block(page: str, soup: BeautifulSoup) -> None:
    assert [script.get("type") for script in soup("script")] == ["application/json", None]
    assert soup("img") == []
    assert "alert(1)" not in str(soup("script")[1])
    data = json.loads(soup("script")[0].string or "")
    assert HOSTILE in data["strings"]
    block = page[page.index('id="items-data">') : page.rindex("</script>\n<script>")]
    assert "<" not in block.removeprefix('id="items-data">')


def test_hostile_names_and_findings_are_escaped_everywhere(report: TrialReport) -> None:
    leak = {**report.leaks[0], "left_question": HOSTILE, "right_question": HOSTILE}
    contestants = [replace(one, model=HOSTILE) for one in report.contestants]
    named = {"closed": "<script>x</script>"}
    arms = tuple(replace(arm, model=HOSTILE, arm=named.get(arm.arm, arm.arm)) for arm in report.analysis.arms)
    hostile = replace(
        report,
        name=HOSTILE,
        leaks=[leak],
        contestants=contestants,
        spec_text=HOSTILE,
        template={**report.template, "user": HOSTILE, "system": HOSTILE},
        counts={**report.counts, "bad_rows": [HOSTILE], "rows_skipped": {HOSTILE: 1}},
        versions={HOSTILE: HOSTILE},
        analysis=replace(report.analysis, arms=arms),
    )
    soup = BeautifulSoup(render(hostile), "html.parser")
    assert len(soup("script")) == 2
    assert soup("img") == []
    assert "{{ 7*7 }}" in soup.get_text()
    assert "<script>x</script>" in {text.get_text() for text in soup.select("svg text")}


def test_the_page_asks_for_nothing_outside_itself(page: str, soup: BeautifulSoup) -> None:
    assert soup("link") == []
    assert soup.find_all(src=True) == []
    assert {link["href"][0] for link in soup.find_all(href=True)} == {"#"}
    assert "url(" not in page
    assert "@import" not in page


def test_only_the_script_of_the_page_may_run(soup: BeautifulSoup) -> None:
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    script = soup("script")[1].string or ""
    expected = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{expected}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not [name for element in soup.find_all(True) for name in element.attrs if name.startswith("on")]


def test_the_verdict_comes_first_with_gate_and_judge(page: str, report: TrialReport) -> None:
    text = visible(page)
    assert BeautifulSoup(page, "html.parser").h1.get_text().strip() == "raft-1000 is BETTER than base on accuracy"
    start = text[: text.index("Read with care")]
    assert "Gate pass" in start
    assert "reference metrics, no LLM (reference/v1)" in start
    assert f"{report.analysis.primary.items} questions" in start


def test_an_inconclusive_verdict_says_how_many_more_questions_would_decide() -> None:
    report = trial(primary="raft-200")
    need = report.analysis.primary.need
    assert need is not None
    assert need.items is not None
    start = visible(render(report)).split("Read with care")[0]
    assert "INCONCLUSIVE" in start
    assert "Gate fail" in start
    assert f"That is {need.items - report.analysis.primary.items} more questions than now" in start
    assert start.count("would decide with") == 1


def test_all_numbers_are_there_without_script(page: str, report: TrialReport) -> None:
    text = visible(page)
    for arm in report.analysis.arms:
        for score in arm.scores:
            assert f"{score.mean.value:.2f}" in text
    for contrast in report.analysis.contrasts:
        assert f"{abs(contrast.difference or 0):.2f}" in text
    assert report.adapters[0]["weights_sha256"] in text
    assert report.rubrics[0]["hash"] in text
    assert "What did a survey of the tide find?" in text


def test_missing_values_are_never_printed_as_python_or_float_words(page: str) -> None:
    assert not re.findall(r"\b(None|nan|NaN|inf|Undefined|True|False)\b", visible(page))


def test_tables_and_headings_are_fit_for_a_screen_reader(soup: BeautifulSoup) -> None:
    assert all(table.caption is not None and table.caption.get_text(strip=True) for table in soup("table"))
    assert all(cell.get("scope") in ("col", "row", "rowgroup") for cell in soup("th"))
    levels = [int(heading.name[1]) for heading in soup.find_all(["h1", "h2", "h3", "h4"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(region.get("aria-label") and region.get("tabindex") == "0" for region in soup.select(".scroll"))
    assert all(figure.get("aria-label") for figure in soup("figure"))
    assert all(svg.get("aria-hidden") == "true" for svg in soup("svg"))


def test_links_lead_somewhere_and_ids_are_unique(soup: BeautifulSoup) -> None:
    ids = [element["id"] for element in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in soup.find_all(href=True)} <= set(ids)


def test_what_a_trial_did_not_have_is_left_out(report: TrialReport) -> None:
    analysis = replace(report.analysis, curves=(), retrieval=None)
    page = render(replace(report, adapters=[], proofs=[], leaks=[], gold={}, analysis=analysis))
    soup = BeautifulSoup(page, "html.parser")
    assert soup.find(id="curves") is None
    assert soup.find(id="retrieval") is None
    headings = {heading.get_text() for heading in soup.find_all("h3")}
    assert not headings & {"Training", "Proof that adapters are applied", "Questions that stood in two pools"}
    assert "was found in another" in visible(page)


def test_a_reranker_is_named_and_its_scores_go_with_the_hits(report: TrialReport) -> None:
    assert "cross-encoder" not in visible(render(report))
    hits = [replace(hit, rerank_score=1.25 - hit.rank) for hit in report.hits]
    page = render(replace(report, hits=hits, reranker=f"/models/cross@{'ab' * 32}"))
    assert "reordered by the cross-encoder cross@abababab" in visible(page)
    data = json.loads(BeautifulSoup(page, "html.parser")("script")[0].string or "")
    assert [hit[5] for hit in data["items"][0]["hits"]] == [1.25 - rank for rank in range(1, 6)]


def test_too_few_clusters_for_any_interval_still_make_a_page() -> None:
    report = trial(count=8)
    assert report.analysis.primary.interval is None
    text = visible(render(report))
    assert "too few independent questions for an interval" in text
    assert "no interval" in text


def test_a_quickstart_stays_small() -> None:
    assert len(render(trial(count=170, runs=1)).encode()) < 1_500_000
