"""What the literature says should come out, beside what did.

A direction holds if every seed's difference has its sign, and is refuted if none has; otherwise it
is `open`: the seeds disagree. Differences are of models with the same seed and questions.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from jobs.bench.retrieval.measure import Result, Run, Tried

STREAMING_TOLERANCE = 0.03
_K = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One direction on one data set.

    Attributes:
        dataset: Which.
        claim: In words, with its origin.
        figures: What was measured.
        holds: `yes`, `no` or `open`.
    """

    dataset: str
    claim: str
    figures: str
    holds: str


def verdicts(result: Result) -> list[Verdict]:
    """Returns every direction that the measured variants can tell of."""
    found = [*_pairs(result), *_growth(result), *_temperatures(result), *_banks(result)]
    found += _streaming(result)
    return [Verdict(result.dataset, *each) for each in found]


_Found = tuple[str, str, str]


def _hit_rates(result: Result, variant: str, cutoff: int = _K) -> list[float]:
    return [run.fixed.overall.hit_rate[cutoff] for run in _runs(result, variant)]


def _runs(result: Result, variant: str) -> list[Run]:
    return [run for run in result.runs if run.variant == variant]


def compared(ours: Sequence[float], other: Sequence[float]) -> str:
    """Returns whether `ours` is greater, seed by seed: `yes`, `no` or `open`."""
    signs = [a > b for a, b in zip(ours, other, strict=True)]
    return "yes" if all(signs) else "open" if any(signs) else "no"


_PAIRS = (
    ("§1 Yi et al.: all > none", "all", "none"),
    ("§1b MNS: mns > none", "mns", "none"),
    ("§1b BMNS table: mns > all", "mns", "all"),
    ("§1b negatives > none", "negatives", "none"),
    ("§1b Khrylchenko et al.: positive-excluded > all", "positive-excluded", "all"),
    ("§1b positive-excluded > negatives", "positive-excluded", "negatives"),
    ("one Adagrad sum a row > one a value", "all, row-wise", "all"),
    ("§4 CBNS as published: cbns, joint > all at equal batch size", "cbns, joint", "all"),
    ("§4 CBNS with our loss: cbns > all at equal batch size", "cbns", "all"),
    ("§4 CBNS: a bank without warm-up hurts", "cbns", "cbns, no warm-up"),
)


def _pairs(result: Result) -> Iterator[_Found]:
    for claim, ours, other in _PAIRS:
        left, right = _hit_rates(result, ours), _hit_rates(result, other)
        if left and right:
            yield claim, f"HitRate@{_K} {_mean(left)} vs {_mean(right)}", compared(left, right)


def _growth(result: Result) -> Iterator[_Found]:
    plain, corrected = (_runs(result, name) for name in ("none", "all"))
    if not plain or not corrected:
        return
    gains = {}
    for cutoff in corrected[0].fixed.overall.hit_rate:
        ours = statistics.fmean(_hit_rates(result, "all", cutoff))
        other = statistics.fmean(_hit_rates(result, "none", cutoff))
        gains[cutoff] = ours / other if other else float("inf")
    rising = list(gains.values()) == sorted(gains.values())
    figures = ", ".join(f"@{cutoff} x{gain:.2f}" for cutoff, gain in gains.items())
    yield "§1 the gain of all over none grows with K", figures, "yes" if rising else "no"


def _temperatures(result: Result) -> Iterator[_Found]:
    by_variant = {name: _by_temperature(result.tried, name) for name in ("none", "all")}
    plain, corrected = by_variant["none"], by_variant["all"]
    if not plain or not corrected:
        return
    figures = ", ".join(f"{t:g}: {corrected[t]:.4f} vs {plain[t]:.4f}" for t in sorted(plain))
    better = [corrected[each] > plain[each] for each in plain]
    holds = "yes" if all(better) else "open" if any(better) else "no"
    yield "§1 all > none at every temperature (validation)", figures, holds
    best = max(corrected, key=lambda each: corrected[each])
    inside = min(corrected) < best < max(corrected)
    yield (
        "§1 the best temperature is inside the grid (validation)",
        f"{best:g} of {', '.join(f'{each:g}' for each in sorted(corrected))}",
        "yes" if inside else "no",
    )


def _by_temperature(tried: Sequence[Tried], variant: str) -> dict[float, float]:
    best: dict[float, float] = {}
    for each in tried:
        if each.variant == variant:
            best[each.temperature] = max(best.get(each.temperature, 0.0), each.hit_rate)
    return best


def _banks(result: Result) -> Iterator[_Found]:
    sizes = {
        int(run.variant.rpartition(" ")[2]): run.variant
        for run in result.runs
        if run.variant.startswith("cbns, bank ")
    }
    plain, bank = _runs(result, "all"), _runs(result, "cbns")
    if plain and bank:
        ratio = statistics.fmean(run.seconds for run in bank) / statistics.fmean(
            run.seconds for run in plain
        )
        yield (
            "§4 CBNS: near-equal step time",
            f"{ratio:.2f} x the processor time of all",
            "yes" if ratio <= 1.1 else "no",  # noqa: PLR2004
        )
    if sizes and bank:
        names = {**sizes, 2048: "cbns"}
        values = {size: _hit_rates(result, names[size]) for size in sorted(names)}
        means = [statistics.fmean(each) for each in values.values()]
        figures = ", ".join(f"M={size}: {_mean(each)}" for size, each in values.items())
        yield (
            "§4 CBNS: recall rises with M, then saturates",
            figures,
            "yes" if means == sorted(means) else "no",
        )


def _streaming(result: Result) -> Iterator[_Found]:
    for name in ("all", "positive-excluded"):
        ours, exact = _runs(result, name), _runs(result, f"{name}, exact q")
        if not ours or not exact:
            continue
        for when, label in (("first_pass", "after one pass"), ("fixed", "at the end")):
            shares = []
            for cutoff in ours[0].fixed.overall.hit_rate:
                left, right = (
                    statistics.fmean(getattr(run, when).overall.hit_rate[cutoff] for run in runs)
                    for runs in (ours, exact)
                )
                shares.append(left / right if right else float("nan"))
            within = all(share >= 1.0 - STREAMING_TOLERANCE for share in shares)
            yield (
                f"{name}: streaming log q within 3% of exact counts, {label}",
                "HitRate@10/50/100 x " + "/".join(f"{share:.3f}" for share in shares),
                "yes" if within else "no",
            )


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f}"
