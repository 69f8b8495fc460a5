"""`headrace bench estimator`: how good streaming sampling probabilities are, and what they cost.

Four things, on SYNTHETIC items:

  simulation   section 5.1 of Yi et al. 2019: 1,000 items drawn by q ~ i^2, 128 a mini-batch without
               replacement, 5,000 buckets in all, A unset, B = 100; after half of the mini-batches
               the distribution turns around, q ~ (1000 - i)^2. Error: sum |p^ - 128 q| / (2 x 128)
               over all items, the mean over 64 mini-batches.
  start        the same with B started at the gaps that were seen, as the trainer does.
  asynchrony   the same with 1 to 16 workers that learn ranges of mini-batches at once (workers x
               mini-batches): one reads before its range, while the others have not pushed theirs.
  cost         processor time of the estimator in percent of a training step's, in one process.

All of it by the functions that workers and servers run: `summarise` and `compose`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from jobs.bench.report import Cell, bench_parser, write_report
from jobs.settings import EXIT_DONE
from streaming.config import FrequencyConfig
from streaming.servers import frequency as freq

_ITEMS, _BATCH, _BUCKETS, _INITIAL_GAP = 1000, 128, 5000, 100.0
_JUDGED = 64
_STEPS = 20_000
_SEED = 3
_MANY = 2.0**24  # sightings after which a start weighs nothing
# algorithm settings of the paper's Figures 4 and 5: alpha, hashes
_SETTINGS = ((0.002, 1), (0.01, 1), (0.05, 1), (0.01, 2), (0.01, 4))
# workers, mini-batches per range
_CONCURRENCY = ((1, 1), (1, 8), (2, 8), (4, 8), (8, 8), (16, 8), (16, 32))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One run of the simulation.

    Attributes:
        alpha: Weight of a new gap.
        hashes: m, which share the 5,000 buckets.
        workers: How many learn at once.
        batches_per_range: Mini-batches between a worker's exchanges.
        paper_start: Whether B starts at 100, as in the paper, or at the gaps that were seen.
    """

    alpha: float = 0.01
    hashes: int = 1
    workers: int = 1
    batches_per_range: int = 8
    paper_start: bool = True


def draw_probabilities() -> tuple[np.ndarray, np.ndarray]:
    """Returns [1000] q before and after the distribution turns around."""
    weights = np.arange(1, _ITEMS + 1) ** 2.0
    return weights / weights.sum(), weights[::-1] / weights.sum()


def draw_batches(random: np.random.Generator, share: np.ndarray, num: int) -> np.ndarray:
    """Returns [num, 128] distinct items per row, drawn one after the other by `share`."""
    # The first 128 of 1,000 exponential clocks are such a sample (Efraimidis and Spirakis 2006).
    clocks = random.exponential(size=(num, _ITEMS)) / share
    return np.argpartition(clocks, _BATCH, axis=1)[:, :_BATCH]


class Estimator:
    """One server and the workers around it, changed by summaries alone.

    Attributes:
        last_seen: [buckets] A.
        gaps: [buckets, 2] decayed sum of gaps, and sightings.
        clock: Mini-batches applied.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        per_hash = _BUCKETS // setting.hashes
        random = np.random.default_rng(_SEED)
        hashed = random.integers(0, per_hash, (setting.hashes, _ITEMS))
        self.buckets = hashed + np.arange(setting.hashes)[:, np.newaxis] * per_hash
        self.last_seen = np.full(_BUCKETS, freq.NEVER, np.int64)
        start = [_INITIAL_GAP, _MANY] if setting.paper_start else [0.0, 0.0]
        self.gaps = np.tile(np.array(start, np.float32), (_BUCKETS, 1))
        self._config = FrequencyConfig(
            hashes=setting.hashes, alpha=setting.alpha, initial_gap=_INITIAL_GAP
        )
        self.clock = 0
        self._summarise = tf.function(
            self._summary,
            input_signature=[tf.TensorSpec([setting.hashes, None], tf.int64)],
            autograph=False,
        )
        self._compose = tf.function(self._composed, autograph=False, reduce_retracing=True)

    def _summary(self, sightings: tf.Tensor) -> freq.Summary:
        summary, _ = freq.summarise(
            sightings,
            tf.range(tf.shape(sightings)[1]),
            batch_size=_BATCH,
            num_batches=tf.shape(sightings, tf.int64)[1] // _BATCH,
            alpha=self.setting.alpha,
        )
        return summary

    def _composed(
        self, summary: freq.Summary, last_seen: tf.Tensor, gaps: tf.Tensor, clock: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return freq.compose(
            summary,
            last_seen=tf.gather(last_seen, summary.buckets),
            gaps=tf.gather(gaps, summary.buckets),
            clock=clock,
            alpha=self.setting.alpha,
        )

    def estimate(self, items: np.ndarray) -> np.ndarray:
        """Returns the probabilities of items as the server has them now."""
        gaps = tf.constant(self.gaps[self.buckets[:, items]])
        return freq.probability(
            gaps, self._config, clock=tf.constant(self.clock), unseen=0.0
        ).numpy()

    def learn(self, batches: np.ndarray) -> freq.Summary:
        """Returns a range's summary, as a worker makes it."""
        return self._summarise(tf.constant(self.buckets[:, batches.reshape(-1)]))

    def push(self, summary: freq.Summary, *, num_batches: int) -> None:
        """Applies a range, as a server does."""
        new = self._compose(
            summary,
            tf.constant(self.last_seen),
            tf.constant(self.gaps),
            tf.constant(self.clock, tf.int64),
        )
        places = summary.buckets.numpy()
        self.last_seen[places], self.gaps[places] = new[0].numpy(), new[1].numpy()
        self.clock += num_batches


def simulate(setting: Setting, *, steps: int = _STEPS) -> Iterator[tuple[int, float]]:
    """Runs the simulation.

    Args:
        setting: What is simulated.
        steps: Mini-batches in all; the distribution turns around after half of them.

    Yields:
        After each range: mini-batches so far, and the error of the estimates that its worker read.
    """
    estimator = Estimator(setting)
    random = np.random.default_rng(_SEED)
    waiting: list[freq.Summary] = []
    first, second = draw_probabilities()
    size = setting.batches_per_range
    for begin in range(0, steps, size):
        share = first if begin < steps // 2 else second
        batches = draw_batches(random, share, size)
        found = estimator.estimate(np.arange(_ITEMS))
        error = np.abs(found - _BATCH * share).sum() / (2 * _BATCH)
        waiting.append(estimator.learn(batches))
        if len(waiting) == setting.workers:  # the one that began first, or any other, pushes
            summary = waiting.pop(int(random.integers(len(waiting))))
            estimator.push(summary, num_batches=size)
        yield begin + size, float(error)


def errors_at(
    setting: Setting, places: Sequence[int], *, steps: int = _STEPS
) -> tuple[list[float], list[tuple[int, float]]]:
    """Returns the errors at some steps, each the mean of 64 mini-batches, and the whole curve."""
    curve = list(simulate(setting, steps=steps))
    times, errors = (np.array(column) for column in zip(*curve, strict=True))
    found = [errors[(times > place - _JUDGED) & (times <= place)].mean() for place in places]
    return [float(each) for each in found], curve


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = bench_parser("estimator", __doc__)
    parser.add_argument("--plot", type=Path, help="PNG file for the curves")
    parser.add_argument("--steps", type=int, default=_STEPS, help="mini-batches of a simulation")
    arguments = parser.parse_args(argv)
    rows, curves = _simulations(arguments.steps)
    rows += _asynchrony(arguments.steps)
    write_report("estimator (synthetic)", rows, costs=step_cost(), out=arguments.out)
    if arguments.plot is not None:
        plot(curves, arguments.plot)
    return EXIT_DONE


Curves = dict[str, list[tuple[int, float]]]


def _places(steps: int) -> list[int]:
    return [int(steps * part) for part in (0.05, 0.25, 0.5, 0.55, 0.75, 1.0)]


def _row(
    name: str, setting: Setting, places: Sequence[int], errors: Sequence[float]
) -> dict[str, Cell]:
    told: dict[str, Cell] = {
        "part": name,
        "setting": f"alpha {setting.alpha:g}, m={setting.hashes}, {setting.workers} workers"
        f" x {setting.batches_per_range}",
    }
    return told | {f"@{at}": round(error, 3) for at, error in zip(places, errors, strict=True)}


def _simulations(steps: int) -> tuple[list[dict[str, Cell]], Curves]:
    rows: list[dict[str, Cell]] = []
    curves: Curves = {}
    for alpha, hashes in _SETTINGS:
        setting = Setting(alpha=alpha, hashes=hashes)
        errors, curve = errors_at(setting, _places(steps), steps=steps)
        rows.append(_row("simulation", setting, _places(steps), errors))
        curves[f"alpha {alpha:g}, {hashes} x {_BUCKETS // hashes} buckets"] = curve
    setting = Setting(hashes=4, paper_start=False)
    errors, curve = errors_at(setting, _places(steps), steps=steps)
    rows.append(_row("start", setting, _places(steps), errors))
    curves["the same, started at the gaps seen"] = curve
    return rows, curves


def _asynchrony(steps: int) -> list[dict[str, Cell]]:
    rows = []
    for workers, size in _CONCURRENCY:
        setting = Setting(hashes=4, workers=workers, batches_per_range=size)
        errors, _ = errors_at(setting, _places(steps), steps=steps)
        rows.append(_row("asynchrony", setting, _places(steps), errors))
    return rows


def step_cost(*, batch_size: int = 1024, rounds: int = 30) -> dict[str, float]:
    """Returns the estimator's processor time per mini-batch over a training step's, in percent.

    The model and the samples are those of `headrace bench stream`: dim 32, a history of ten items.
    """
    from jobs.bench.stream.alone import Alone
    from jobs.bench.stream.synthetic import specification
    from models.config import TwoTowerConfig
    from models.two_tower import TwoTower

    model = TwoTower(specification(), TwoTowerConfig(dim=32, hidden=(64,)))
    alone = Alone(model, batch_size=batch_size)
    chunks = [_chunk(seed, size=8 * batch_size) for seed in range(4)]
    estimate = alone.build_estimator()
    learn = alone.build()
    seconds: dict[str, list[float]] = {"estimate": [], "learn": []}
    for number in range(rounds):
        chunk = chunks[number % len(chunks)]
        seconds["estimate"].append(_processor_seconds(estimate, chunk["item_id"]))
        seconds["learn"].append(_processor_seconds(learn, chunk))
    warm = rounds // 3
    medians = {name: float(np.median(values[warm:])) for name, values in seconds.items()}
    return {f"estimator_percent_of_step@{batch_size}": 100 * medians["estimate"] / medians["learn"]}


def _processor_seconds(call: Callable[[Any], object], argument: Any) -> float:
    started = time.process_time()
    call(argument)
    return time.process_time() - started


def _chunk(seed: int, *, size: int) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    random = np.random.default_rng(seed)
    items = (random.zipf(1.1, size * 11) % 100_000).astype(np.int64)
    history = tf.RaggedTensor.from_uniform_row_length(tf.constant(items[size:]), 10)
    return {
        "user_id": tf.constant(random.integers(0, 200_000, size)),
        "item_id": tf.constant(items[:size]),
        "history_item_id": tf.RaggedTensor.from_row_lengths(
            history.flat_values, tf.fill([size], tf.constant(10, tf.int64))
        ),
        "reward": tf.ones([size]),
    }


def plot(curves: Curves, path: Path) -> None:
    """Draws the error over the mini-batches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        times, errors = zip(*curve, strict=True)
        axes.plot(times, errors, label=name)
    axes.set(
        xlabel="mini-batches",
        ylabel="error of the estimated probabilities",
        title="Streaming sampling probabilities (Yi et al. 2019, section 5.1)",
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
