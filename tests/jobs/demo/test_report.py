"""The report, from canned numbers."""

import dataclasses
import re

import numpy as np
import pytest

from jobs.demo.report import (
    COLOURS,
    Frequencies,
    Method,
    QueryExample,
    Report,
    Stage,
    TrainingRun,
    write_report,
)
from jobs.demo.summary import result_tables
from models.evaluate import Evaluation, Quality
from tests.jobs.pages import fetched


def _quality(base: float) -> Quality:
    return Quality(
        num_samples=100,
        hit_rate={10: base, 50: 3 * base, 100: 5 * base},
        ndcg={10: base / 2, 50: base, 100: 1.5 * base},
    )


def _evaluation(base: float) -> Evaluation:
    deciles = [_quality(base * share) for share in np.linspace(1.6, 0.0, 10)]
    return Evaluation(overall=_quality(base), by_decile=deciles, num_outside=3)


def _run(name: str, colour: str, height: float, **totals: int) -> TrainingRun:
    steps = np.arange(1, 400)
    noise = np.random.default_rng(3).normal(0, 0.05, len(steps))
    found = {"samples": 880_000, "batches": 863, "rejects": 0, "lost": 0, "torn": 0} | totals
    return TrainingRun(
        name=name,
        colour=colour,
        curve=np.stack([steps * 2048, height + 1.2 * np.exp(-steps / 90) + noise], axis=1),
        samples_per_second=48_123.4,
        expected_samples=880_000,
        totals=found,
    )


def canned_report() -> Report:
    rng = np.random.default_rng(1)
    true = np.clip(1 / np.arange(1, 1300) ** 0.9, 1e-3, 0.95)
    noisy = np.clip(true * np.exp(rng.normal(0, 0.2, len(true))), 1e-4, 1)
    plain = Method(name="without logQ", colour=COLOURS["plain"], evaluations=[_evaluation(0.034)])
    return Report(
        popularity=Method(
            name="popularity", colour=COLOURS["popularity"], evaluations=[_evaluation(0.077)]
        ),
        plain=plain,
        logq=Method(
            name="with logQ",
            colour=COLOURS["logq"],
            evaluations=[_evaluation(0.086), _evaluation(0.090)],
        ),
        runs=[
            _run("without logQ", COLOURS["plain"], 6.1),
            _run("with logQ", COLOURS["logq"], 6.4),
        ],
        frequencies=Frequencies(true=true, estimated=noisy),
        stages=[
            Stage(name="rows read", count=176_738),
            Stage(name="rejected", count=20, remark="planted"),
            Stage(name="impressions", count=100_000),
            Stage(name="samples", count=55_375),
        ],
        rejects={"not_json": 4, "missing_item_id": 4},
        query=QueryExample(
            user="User 42, 30, F, <b>engineer</b>",
            scenario="evening",
            history=["Fargo (1996)", "The English Patient (1996)"],
            answers=[("Contact (1997)", "Drama, Sci-Fi", 0.71), ("Emma (1996)", "Drama", 0.66)],
        ),
        facts=[("seed", "1"), ("machine", "a machine, 2 cores")],
        protocol=["Every item is ranked.", "Seen items are left out."],
        planted=20,
        workers=2,
        config="model:\n  dim: 32\n",
        seconds={"samples": 12.5, "train": 60.25},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("with space") / "report.html"
    write_report(canned_report(), path)
    return path.read_text(encoding="utf-8")


def test_the_page_fetches_nothing(page: str) -> None:
    assert fetched(page) == []


def test_it_has_three_figures_in_the_pages_own_ink(page: str) -> None:
    assert page.count("<svg ") == 3
    assert page.count("</svg>") == 3
    assert "#123456" not in page
    assert "currentColor" in page


def test_it_shows_the_numbers_that_it_was_given(page: str) -> None:
    # 0.077 x 3 for popularity at 50; the mean of 0.086 and 0.090 at 10, with its range.
    for text in ("0.231", "0.088", "0.086-0.090", "55,375", "880,000", "48,123", "not_json"):
        assert text in page, text


def test_the_printed_table_says_that_a_seed_does_not_reproduce() -> None:
    [quality] = [table for table in result_tables(canned_report()) if "Quality" in str(table.title)]
    assert "not bit-reproducible" in str(quality.caption)
    # One seed of popularity and of the plain model; two of the model with logQ, with their range.
    assert list(quality.columns[1].cells) == ["0.077", "0.034", "0.088 (0.086-0.090)"]


def test_the_rate_is_that_of_training_alone_and_theory_is_called_so(page: str) -> None:
    assert "while training, start-up not counted" in page
    assert "The theory (Yi et al. 2019), which this run does not test" in page


def test_text_from_data_is_escaped(page: str) -> None:
    assert "&lt;b&gt;engineer" in page
    assert "<b>engineer" not in page


def test_the_best_hit_rate_is_marked(page: str) -> None:
    marked = re.findall(r'class="best">([\d.]+)', page)
    assert marked == ["0.088", "0.264", "0.440"]


@pytest.mark.parametrize("totals", [{"samples": 879_999}, {"lost": 1}, {"torn": 1}, {"rejects": 2}])
def test_accounting_that_is_off_is_not_called_exact(tmp_path, totals: dict[str, int]) -> None:
    report = canned_report()
    off = _run("with logQ", COLOURS["logq"], 6.4, **totals)
    assert not off.adds_up
    write_report(dataclasses.replace(report, runs=[report.runs[0], off]), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "does not add up" in text
    assert ">exact<" not in text


def test_a_report_without_a_query_leaves_the_section_out(tmp_path) -> None:
    write_report(dataclasses.replace(canned_report(), query=None), tmp_path / "report.html")
    assert "What does it answer" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_frequencies_compare_medians() -> None:
    compared = Frequencies(true=np.array([0.1, 0.2, 0.4]), estimated=np.array([0.1, 0.1, 0.8]))
    assert compared.median_ratio() == pytest.approx(1.0)
    assert compared.median_ratio(at_least=0.3) == pytest.approx(2.0)
