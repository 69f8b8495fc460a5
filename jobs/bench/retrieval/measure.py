"""Trains every variant and evaluates it: on the validation cut to choose settings, then the test.

Each figure of the test is of a model trained from the first sample to the test's beginning. Two
moments of each training are evaluated: after a fixed number of passes, and after the processor time
that the plainest variant needed for those (`none`, with the same seed), whatever part of a pass
that is. Evaluation costs no training time.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

from jobs.bench.retrieval.data import Dataset, Split, test_split, validation_split
from jobs.bench.retrieval.train import Chunk, Learner, Material, prepare
from jobs.bench.retrieval.variants import (
    BATCH_SIZE,
    BATCHES_PER_RANGE,
    DEFAULT,
    FREQUENCY,
    GRID,
    PASSES,
    Variant,
    model_config,
)
from models.evaluate import Evaluation, evaluate_model, evaluate_popularity
from models.two_tower import TwoTower
from streaming.config import FrequencyConfig

logger = logging.getLogger(__name__)

Settings = tuple[float, float]
REFERENCE = "none"
TUNED_BY = 50
"""HitRate at this K chooses settings."""
_TUNING_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        seeds: Of the parameters and draws; 1 to this.
        max_questions: Per data set, of the test; the validation takes half as many.
        passes: Over the training samples; None takes the data set's own number.
        tune: Whether settings are chosen on the validation cut; otherwise all take the default.
        equal_time: Whether models are evaluated at equal processor time as well.
    """

    seeds: int = 3
    max_questions: int = 10_000
    passes: int | None = None
    tune: bool = True
    equal_time: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One point of the grid on the validation cut."""

    variant: str
    temperature: float
    learning_rate: float
    hit_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training on the test's training samples.

    Attributes:
        variant: Its name.
        seed: Of the parameters and draws.
        first_pass: After one pass.
        fixed: After the fixed number of passes.
        seconds: Processor time of those passes.
        equal_time: At equal processor time, or None.
        equal_passes: How many passes that was, in parts.
    """

    variant: str
    seed: int
    first_pass: Evaluation
    fixed: Evaluation
    seconds: float
    equal_time: Evaluation | None = None
    equal_passes: float = float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """All of one data set.

    Attributes:
        dataset: Its name.
        sizes: What it is, in numbers.
        tried: The grid.
        settings: (temperature, learning rate) per variant.
        popularity: The baseline.
        runs: One per variant and seed.
    """

    dataset: str
    sizes: Mapping[str, int]
    tried: list[Tried]
    settings: Mapping[str, Settings]
    popularity: Evaluation
    runs: list[Run]


def measure(dataset: Dataset, variants: Sequence[Variant], plan: Plan) -> Result:
    """Measures all variants on one data set."""
    passes = plan.passes or PASSES[dataset.name]
    tried: list[Tried] = []
    if plan.tune:
        cut = validation_split(dataset, max_questions=max(1, plan.max_questions // 2))
        tried = list(_tune(dataset, cut, variants, passes=passes))
    settings = chosen(variants, tried)
    whole = test_split(dataset, max_questions=plan.max_questions)
    return Result(
        dataset=dataset.name,
        sizes=_sizes(dataset, whole, passes=passes),
        tried=tried,
        settings=settings,
        popularity=evaluate_popularity(whole.asked),
        runs=list(_test(dataset, whole, variants, (settings, passes, plan))),
    )


def chosen(variants: Sequence[Variant], tried: Sequence[Tried]) -> dict[str, Settings]:
    """Returns the settings of each variant: its best of the grid, or those of its parent."""
    best: dict[str, Tried] = {}
    for each in tried:
        if each.variant not in best or each.hit_rate > best[each.variant].hit_rate:
            best[each.variant] = each
    own = {name: (each.temperature, each.learning_rate) for name, each in best.items()}
    return {each.name: own.get(each.settings_of or each.name, DEFAULT) for each in variants}


def _sizes(dataset: Dataset, cut: Split, *, passes: int) -> dict[str, int]:
    return {
        "samples": dataset.samples.num_rows,
        "training samples": cut.training.num_rows,
        "later samples": cut.num_later,
        "questions": len(cut.asked.targets),
        "corpus items": len(cut.asked.popularity),
        "passes": passes,
        "mini-batches per pass": -(-cut.training.num_rows // BATCH_SIZE),
    }


def _tune(
    dataset: Dataset, cut: Split, variants: Sequence[Variant], *, passes: int
) -> Iterator[Tried]:
    material: Material | None = None
    for variant in variants:
        if variant.settings_of is not None:
            continue
        for settings in GRID:
            learner, material = make_learner(dataset, cut, variant, settings, material)
            learner.reset(seed=_TUNING_SEED)
            for chunk in material.chunks * passes:
                learner.learn(chunk)
            quality = evaluate_model(learner.model, learner.parameters(), cut.asked).overall
            logger.info(
                "%s, validation: %s at %s: HitRate@%d %.4f",
                dataset.name,
                variant.name,
                settings,
                TUNED_BY,
                quality.hit_rate[TUNED_BY],
            )
            yield Tried(
                variant=variant.name,
                temperature=settings[0],
                learning_rate=settings[1],
                hit_rate=quality.hit_rate[TUNED_BY],
            )


def make_learner(
    dataset: Dataset,
    cut: Split,
    variant: Variant,
    settings: Settings,
    material: Material | None,
) -> tuple[Learner, Material]:
    """Returns a variant's trainer, and its training samples, prepared once per cut."""
    steps = -(-cut.training.num_rows // BATCH_SIZE)
    config = model_config(variant, settings=settings, steps_per_pass=steps)
    model = TwoTower(dataset.specification, config)
    material = material or prepare(
        cut.training, model, batch_size=BATCH_SIZE, batches_per_range=BATCHES_PER_RANGE
    )
    frequency = FrequencyConfig(**FREQUENCY)
    return Learner(model, material, frequency=frequency, exact=variant.exact), material


def _test(
    dataset: Dataset,
    cut: Split,
    variants: Sequence[Variant],
    how: tuple[Mapping[str, Settings], int, Plan],
) -> Iterator[Run]:
    settings, passes, plan = how
    material: Material | None = None
    budgets: dict[int, float] = {}
    for variant in variants:
        learner, material = make_learner(dataset, cut, variant, settings[variant.name], material)
        _warm_up(learner, material.chunks)
        for seed in range(1, plan.seeds + 1):
            learner.reset(seed=seed)
            budget = budgets.get(seed) if plan.equal_time else None
            run = _train(learner, material.chunks, cut, (variant.name, seed, passes, budget))
            if variant.name == REFERENCE:
                budgets[seed] = run.seconds
                if plan.equal_time:
                    run = dataclasses.replace(run, equal_time=run.fixed, equal_passes=float(passes))
            logger.info(
                "%s: %s, seed %d: HitRate@%d %.4f, %.1f s",
                dataset.name,
                variant.name,
                seed,
                TUNED_BY,
                run.fixed.overall.hit_rate[TUNED_BY],
                run.seconds,
            )
            yield run


def _warm_up(learner: Learner, chunks: Sequence[Chunk]) -> None:
    """Traces for full ranges and for the last, shorter one, outside of all measured time."""
    for chunk in (chunks[0], chunks[-1]):
        learner.learn(chunk)


def _train(
    learner: Learner,
    chunks: Sequence[Chunk],
    cut: Split,
    what: tuple[str, int, int, float | None],
) -> Run:
    """Trains for the passes, and on to the budget's end if that is later."""
    name, seed, passes, budget = what
    moments: dict[str, Evaluation] = {}
    spent = seconds = 0.0
    equal_passes = float("nan")
    learned = 0

    def evaluate() -> Evaluation:
        return evaluate_model(learner.model, learner.parameters(), cut.asked)

    while "fixed" not in moments or (budget is not None and "equal" not in moments):
        started = time.process_time()
        learner.learn(chunks[learned % len(chunks)])
        spent += time.process_time() - started
        learned += 1
        if learned == len(chunks):
            moments["first"] = evaluate()
        if learned == len(chunks) * passes:
            moments["fixed"] = moments["first"] if passes == 1 else evaluate()
            seconds = spent
        if budget is not None and spent >= budget and "equal" not in moments:
            moments["equal"] = evaluate()
            equal_passes = learned / len(chunks)
    return Run(
        variant=name,
        seed=seed,
        first_pass=moments["first"],
        fixed=moments["fixed"],
        seconds=seconds,
        equal_time=moments.get("equal"),
        equal_passes=equal_passes,
    )
