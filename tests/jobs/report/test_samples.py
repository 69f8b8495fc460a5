"""The data checks' page, from made-up days."""

import dataclasses
import re
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.report.samples import MAX_FINDINGS, SamplesReport, write_report
from pipeline.checks.drift import check
from pipeline.checks.limits import Checks
from pipeline.checks.profile import Profile
from tests.jobs.pages import fetched
from tests.pipeline.checks.days import Population, profile_day, replace

DAYS = [f"2026-01-{number:02d}" for number in range(1, 7)]


def _report() -> SamplesReport:
    """Four equal days, one with all cities changed, which fails, and one with half of the rows."""
    population = Population(4, num_users=2000, num_items=500)
    checks = Checks.model_validate({"psi": {"fail": 0.25}})
    published: dict[str, Profile] = {}
    refused: dict[str, Profile] = {}
    findings = []
    for number, day in enumerate(DAYS):
        table = population.day(2000, number)
        if number == 4:
            table = replace(table, "city", pa.array(["<i>Atlantis</i>"] * 2000))
        if number == 5:
            table = table.slice(0, 900)
        profile = profile_day(table)
        found = check(profile, list(published.values()), checks, kind="retrieval", date=day)
        findings += found
        failed = any(each.severity == "fail" for each in found)
        (refused if failed else published)[day] = profile
    return SamplesReport(
        name="<b>shop</b>",
        profiles={"retrieval": published},
        refused={"retrieval": refused},
        findings=findings,
        rejects={DAYS[0]: {"not_json": 7}, DAYS[3]: {"not_json": 1, "missing_item_id": 1234}},
        outcomes={day: {"joined": 100, "late": 3} for day in DAYS},
        checks=checks,
    )


@pytest.fixture(scope="module")
def report() -> SamplesReport:
    return _report()


@pytest.fixture(scope="module")
def page(report: SamplesReport, tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page(report, tmp_path_factory.mktemp("with space"))


def _page(report: SamplesReport, folder: Path) -> str:
    write_report(report, folder / "samples.html")
    return (folder / "samples.html").read_text(encoding="utf-8")


def _picture(page: str, title: str) -> str:
    (found,) = re.findall(rf'<svg role="img" aria-label="{title}".*?</svg>', page, re.DOTALL)
    return str(found)


def _texts(picture: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


def test_the_page_fetches_nothing_and_is_drawn_in_its_own_ink(page: str) -> None:
    assert fetched(page) == []
    assert "#123456" not in page
    assert "currentColor" in page
    assert "prefers-color-scheme: dark" in page


def test_every_picture_is_there_once(page: str) -> None:
    titles = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert titles == [
        "Samples per day and kind",
        "Rejected rows per day and reason",
        "Outcomes per day and fate",
        "retrieval: psi per feature and day",
        "retrieval: the largest drifts",
        "retrieval: nulls per feature and day",
        "retrieval: vocabulary per feature and day",
    ]


def test_findings_stand_newest_first_and_failures_before_warnings(page: str) -> None:
    rows = re.findall(
        r"<tr><td>([\d-]+)</td><td class=\"text\">retrieval</td>\s*<td class=\"text\">(.*?)</td>"
        r".*?<span class=\"(?:no|warn)\">(\w+)</span>",
        page,
        re.DOTALL,
    )
    # A value that was never there is drift, and a new id.
    assert rows == [
        ("2026-01-06", "all rows", "warn"),
        ("2026-01-05", "city", "fail"),
        ("2026-01-05", "city", "warn"),
    ]
    assert "found 900 rows, usual are 2,000: 2.22 times fewer" in page


def test_a_refused_day_is_shown_and_no_day_is_compared_with_it(
    report: SamplesReport, page: str
) -> None:
    assert list(report.shown("retrieval")) != list(report.profiles["retrieval"])
    assert report.good("retrieval", DAYS[5]) == [
        report.profiles["retrieval"][day] for day in DAYS[:4]
    ]
    heat = _texts(_picture(page, "retrieval: psi per feature and day"))
    assert heat[: len(DAYS)] == [day[5:] for day in DAYS]
    assert "city, 2026-01-05 (PSI" in " ".join(
        _texts(_picture(page, "retrieval: the largest drifts"))
    )


def test_a_refused_version_is_shown_in_place_of_the_published_one() -> None:
    old, new = Profile(rows=5), Profile(rows=6)
    report = SamplesReport(
        name="both", profiles={"a": {DAYS[0]: old}}, refused={"a": {DAYS[0]: new}}
    )
    assert report.shown("a") == {DAYS[0]: new}
    assert report.good("a", DAYS[1]) == [old]


def test_cells_say_what_was_measured(page: str) -> None:
    nulls = _texts(_picture(page, "retrieval: nulls per feature and day"))
    # `age` lacks 1 % of the rows; other features have all, or few empty lists.
    assert {"age", "history_item_id"} <= set(nulls)
    assert "city" not in nulls
    percents = [text for text in nulls if text.endswith("%")]
    assert len(percents) == 2 * len(DAYS)  # the first day, too


def test_what_the_checks_found_is_framed(report: SamplesReport, tmp_path: Path) -> None:
    red = "stroke: #c4423a"
    title = "retrieval: psi per feature and day"
    assert red in _picture(_page(report, tmp_path), title)
    quiet = dataclasses.replace(report, findings=())
    assert red not in _picture(_page(quiet, tmp_path), title)


def test_numbers_and_text_of_data_are_as_they_were_given(page: str) -> None:
    assert "&lt;b&gt;shop" in page
    assert "<b>shop" not in page
    for text in ("1,235", "2,000", "900"):  # rejected rows of a day; samples of days
        assert f"<td>{text}</td>" in page, text


def test_few_of_many_findings_are_listed(report: SamplesReport, tmp_path: Path) -> None:
    many = dataclasses.replace(report, findings=[report.findings[0]] * (MAX_FINDINGS + 20))
    page = _page(many, tmp_path)
    assert page.count(report.findings[0].text) == MAX_FINDINGS
    assert "and 20 more, of earlier days" in page


@pytest.mark.parametrize(
    "profiles", [{}, {"retrieval": {}}, {"retrieval": {DAYS[0]: Profile()}}, {"corpus": {}}]
)
def test_a_page_of_nothing_is_a_page(
    profiles: dict[str, dict[str, Profile]], tmp_path: Path
) -> None:
    page = _page(SamplesReport(name="none", profiles=profiles), tmp_path)
    assert "<svg" not in page
    assert "Nothing is past its limit" in page


def test_only_the_last_days_are_shown() -> None:
    profiles = {
        f"2026-{number // 28 + 1:02d}-{number % 28 + 1:02d}": Profile() for number in range(120)
    }
    report = SamplesReport(name="long", profiles={"retrieval": profiles})
    assert report.days == sorted(profiles)[-90:]


def test_a_check_that_is_off_is_drawn_but_never_called_the_worst(
    report: SamplesReport, tmp_path: Path
) -> None:
    checks = Checks.model_validate({"features": {"city": {"psi": False}}})
    page = _page(dataclasses.replace(report, checks=checks), tmp_path)
    assert "city" in _texts(_picture(page, "retrieval: psi per feature and day"))
    worst = " ".join(_texts(_picture(page, "retrieval: the largest drifts")))
    assert "city" not in worst
