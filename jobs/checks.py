"""What can be known to be wrong before any process of a cluster starts, without TensorFlow."""

from __future__ import annotations

import logging
from pathlib import Path

from jobs.corpus import corpus_files
from models.config import TwoTowerConfig, hard_negatives_column
from pipeline.schema import InputError
from pipeline.specification import Specification
from streaming.checkpoints.lives import check_unused, make
from streaming.checkpoints.newest import checkpoint_folders
from streaming.config import StartConfig, TrainConfig
from streaming.schedule.positions import first_ledger
from streaming.source import Source

logger = logging.getLogger(__name__)


def check_together(
    specification: Specification, model: TwoTowerConfig, config: TrainConfig
) -> None:
    """Refuses what each section allows, and the three together do not.

    Raises:
        InputError: If an option would do nothing, or what it does would be wrong.
    """
    hard_negatives_column(specification, model)
    if config.cluster.merge.rule == "adagrad" and model.optimizer == "sgd":
        raise InputError(
            "train.cluster.merge.rule: found adagrad with model.optimizer sgd, which"
            " has no accumulator; expected another rule"
        )
    if not config.frequency.per_scenario:
        return
    if model.negatives.corpus is not None or model.negatives.bank is not None:
        raise InputError(
            "train.frequency.per_scenario: the corpus' items have no scenario, and a bank mixes"
            " them; expected false with model.negatives.corpus or model.negatives.bank"
        )
    kafka = config.source.kafka
    topics = 0 if kafka is None else len(kafka.topics)
    if len(specification.scenarios) > max(1, topics):
        raise InputError(
            f"train.frequency.per_scenario: found {len(specification.scenarios)} scenarios in"
            f" {topics} topics; expected a Kafka topic for each, or false: in a mini-batch of"
            " several, an item would be counted once for each of its scenarios"
        )


def warn_of_shared_frequencies(specification: Specification, config: TrainConfig) -> None:
    """Tells of an estimator that is smaller than the candidates' table; for the coordinator."""
    largest = max(
        (
            specification.tables[feature.table].buckets
            for feature in specification.features.candidate
            if feature.table is not None
        ),
        default=0,
    )
    if config.frequency.buckets < largest:
        logger.warning(
            "train.frequency.buckets: found %d, fewer than the %d of the candidates' largest table;"
            " if there are as many items, they share frequencies",
            config.frequency.buckets,
            largest,
        )


def corpus_directory(model: TwoTowerConfig, config: TrainConfig) -> str:
    """Returns the samples whose items are the corpus of negatives.

    Raises:
        InputError: If there are none.
    """
    corpus, archive = model.negatives.corpus, config.source.archive
    if corpus is not None and corpus.directory is not None:
        return corpus.directory
    if archive is None:
        raise InputError(
            "model.negatives.corpus.directory: found none; expected the output of `headrace"
            " samples`, as the source is a stream"
        )
    return archive.directory


def check_corpus(specification: Specification, model: TwoTowerConfig, config: TrainConfig) -> None:
    """Sees that the corpus of negatives, if there is one, can be read from here.

    Raises:
        InputError: If its samples are not there, or lack a column.
    """
    if model.negatives.corpus is not None:
        names = [feature.name for feature in specification.candidate_features]
        corpus_files(corpus_directory(model, config), names)


def check_start(config: TrainConfig, source: Source) -> None:
    """Sees that the run's folder and its source are there, and that a run can begin in them.

    Raises:
        InputError: If the folder cannot be written, or another trainer uses it, or, without a
            checkpoint, the offsets that `train.stream.start` names are not of this source.
        SourceUnavailableError: If it is not there.
    """
    checkpoints = Path(config.directory) / "checkpoints"
    make(checkpoints)
    check_unused(checkpoints)
    ends, start = source.end_offsets(), config.stream.start
    if checkpoint_folders(checkpoints):
        return
    if isinstance(start, StartConfig) and start.timestamp is None:
        starts = source.start_offsets()
        ledger = first_ledger(start, source, starts=starts, ends=ends)
        ledger.check_identity(source.identity(ledger.offsets))
        ledger.adopt(starts, ends)
