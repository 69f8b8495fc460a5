from __future__ import annotations

from jobs.bench.retrieval.claims import compared, verdicts
from jobs.bench.retrieval.measure import Result, Run, Tried, chosen
from jobs.bench.retrieval.variants import DEFAULT, VARIANTS
from models.evaluate import Evaluation, Quality


def quality(hit_rate: float) -> Evaluation:
    rates = {10: hit_rate / 2, 50: hit_rate, 100: hit_rate * 1.5}
    overall = Quality(num_samples=10, hit_rate=rates, ndcg=rates)
    return Evaluation(overall=overall, by_decile=[overall] * 10, num_outside=0)


def run(variant: str, seed: int, *, hit_rate: float, first: float, seconds: float = 1.0) -> Run:
    return Run(
        variant=variant,
        seed=seed,
        first_pass=quality(first),
        fixed=quality(hit_rate),
        seconds=seconds,
    )


def result(runs: list[Run], tried: list[Tried]) -> Result:
    return Result(
        dataset="toy", sizes={}, tried=tried, settings={}, popularity=quality(0.1), runs=runs
    )


def test_a_direction_is_judged_seed_by_seed() -> None:
    assert compared([0.2, 0.3], [0.1, 0.2]) == "yes"
    assert compared([0.2, 0.3], [0.3, 0.4]) == "no"
    assert compared([0.2, 0.3], [0.1, 0.4]) == "open"


def test_streaming_log_q_is_compared_with_exact_counts_at_both_moments() -> None:
    runs = [
        run("all", 1, hit_rate=0.30, first=0.10),
        run("all, exact q", 1, hit_rate=0.305, first=0.20),
    ]
    holds = {each.claim: each.holds for each in verdicts(result(runs, []))}
    assert holds["all: streaming log q within 3% of exact counts, at the end"] == "yes"  # .984
    assert holds["all: streaming log q within 3% of exact counts, after one pass"] == "no"


def test_the_best_temperature_is_told_from_the_border_of_the_grid() -> None:
    def grid(rates: tuple[float, float, float]) -> list[Tried]:
        return [
            Tried(variant=name, temperature=t, learning_rate=0.1, hit_rate=rate - loss)
            for name, loss in (("all", 0.0), ("none", 0.1))
            for t, rate in zip((0.05, 0.1, 0.2), rates, strict=True)
        ]

    for rates, inside in (((0.2, 0.3, 0.2), "yes"), ((0.2, 0.3, 0.4), "no")):
        found = {each.claim: each for each in verdicts(result([], grid(rates)))}
        assert found["§1 the best temperature is inside the grid (validation)"].holds == inside
        assert found["§1 all > none at every temperature (validation)"].holds == "yes"


def test_settings_are_the_best_of_the_grid_and_children_take_their_parent_s() -> None:
    tried = [
        Tried(variant="all", temperature=0.05, learning_rate=0.1, hit_rate=0.3),
        Tried(variant="all", temperature=0.2, learning_rate=0.1, hit_rate=0.2),
    ]
    settings = chosen(VARIANTS, tried)
    assert settings["all"] == settings["all, exact q"] == (0.05, 0.1)
    assert settings["none"] == DEFAULT
