"""`headrace train`: a stream of samples to parameters, on parameter servers.

Three ways to start it:

  headrace train --config F --local               every process here; dead ones are started again
  headrace train --config F --role ROLE ...       one process, addresses by flags
  TF_CONFIG=... headrace train --config F         one process, addresses from the environment

Training starts where the newest checkpoint of `train.directory` left off. SIGTERM saves and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from jobs.checks import (
    check_corpus,
    check_start,
    check_together,
    corpus_directory,
    warn_of_shared_frequencies,
)
from jobs.live.dashboard import TABLE_SHOWN, shown
from jobs.main import follow_parent, import_tensorflow, run_job
from jobs.settings import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RETRY, add_config_arguments, load_settings
from models.config import ExportConfig, TwoTowerConfig
from pipeline.schema import InputError, schema_fingerprint
from pipeline.specification import Specification
from streaming.checkpoints.lives import launching
from streaming.cluster import (
    ROLES,
    Topology,
    index_from_hostname,
    serve,
    started_within,
    topology_from_environment,
)
from streaming.config import ArchiveConfig, TrainConfig
from streaming.sources.archive import ArchiveSource
from streaming.sources.kafka import KafkaSource
from streaming.sources.kafka_dead_letters import DeadLetterTopic
from streaming.worker.dead_letters import DeadLetterFiles

if TYPE_CHECKING:
    from models.contract import Model
    from streaming.ledger import Ledger
    from streaming.source import Source
    from streaming.worker.dead_letters import DeadLetters

logger = logging.getLogger(__name__)

EXIT_BUG = 1
METRICS: Final = "metrics.jsonl"
SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "specification": Specification,
    "model": TwoTowerConfig,
    "train": TrainConfig,
}
_LAUNCHER_SECTIONS: Final[dict[str, type[BaseModel]]] = SECTIONS | {"export": ExportConfig}
_PLACE: Final = ("role", "index", "ps", "workers", "coordinator")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 2 wrong input, 75 start it again."""
    arguments = argument_parser().parse_args(argv)
    if arguments.local:
        return _run_local(arguments)
    return run_role(arguments, TrainingProcess)


def run_role(arguments: argparse.Namespace, process: type[TrainingProcess]) -> int:
    """Runs one process of the cluster, as its flags or TF_CONFIG say."""
    follow_parent()
    topology, role, index = _place(arguments)
    with started_within():
        import_tensorflow()
    run = process(arguments)
    run.name = f"{role} {index}"
    if role == "coordinator":
        return run.coordinate(topology)
    if role == "worker":
        run.register_reader()
    return serve(topology, role, index)


def argument_parser() -> argparse.ArgumentParser:
    """Returns the parser of `headrace train`."""
    parser = argparse.ArgumentParser(
        prog="headrace train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, _LAUNCHER_SECTIONS)
    parser.add_argument("--local", action="store_true", help="start every process on this machine")
    parser.add_argument("--role", choices=ROLES, help="what this process is")
    parser.add_argument("--index", type=int, help="which of its role; else from the hostname: x-2")
    for name, what in [("ps", "parameter servers"), ("workers", "workers")]:
        parser.add_argument(f"--{name}", metavar="HOST:PORT,...", help=f"addresses of the {what}")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of the coordinator")
    return parser


def _place(arguments: argparse.Namespace) -> tuple[Topology, str, int]:
    """Returns the topology and this process's place in it."""
    if arguments.role is None:
        return topology_from_environment(os.environ)
    missing = [name for name in ("ps", "workers", "coordinator") if not getattr(arguments, name)]
    if missing:
        raise InputError(
            f"--role: found no --{', --'.join(missing)}; expected the addresses of all"
        )
    topology = Topology(
        arguments.coordinator,
        tuple(arguments.workers.split(",")),
        tuple(arguments.ps.split(",")),
    )
    index = arguments.index
    if index is None:
        index = index_from_hostname(socket.gethostname())
    topology.address(arguments.role, index)
    return topology, arguments.role, index


def _run_local(arguments: argparse.Namespace) -> int:
    placed = [f"--{name}" for name in _PLACE if getattr(arguments, name) is not None]
    if placed:
        raise InputError(
            f"--local: found {', '.join(placed)} too; expected one of --local and --role: --local"
            " starts every role, and chooses their addresses"
        )
    from jobs.live.companion import Companion
    from jobs.local import LocalCluster

    settings = load_settings(arguments.config, arguments.overrides, _LAUNCHER_SECTIONS)
    config = cast(TrainConfig, settings["train"])
    specification = cast(Specification, settings["specification"])
    # Asked here first: what is wrong is told in a second, and not by four processes.
    model = cast(TwoTowerConfig, settings["model"])
    check_together(specification, model, config)
    check_corpus(specification, model, config)
    source = open_source(config, specification)
    try:
        check_start(config, source)
    finally:
        source.close()
    command = [sys.executable, "-m", "jobs.train", "--config", str(arguments.config)]
    exporter = [sys.executable, "-m", "jobs.main", "export", "--config", str(arguments.config)]
    for override in arguments.overrides:
        command += ["--set", override]
        exporter += ["--set", override]
    with contextlib.ExitStack() as beside:
        beside.enter_context(launching(Path(config.directory) / "checkpoints"))
        beside.enter_context(shown(Path(config.directory) / METRICS))
        if settings["export"].follow:
            beside.enter_context(Companion("exporter", [*exporter, "--follow"]))
        return LocalCluster(command, config.cluster, directory=config.directory).run()


def open_source(config: TrainConfig, specification: Specification) -> Source:
    """Returns the source that a configuration names."""
    schema = specification.sample_schema
    if config.source.kafka is not None:
        return KafkaSource(config.source.kafka, schema)
    archive = cast(ArchiveConfig, config.source.archive)  # exactly one of the two is set
    return ArchiveSource(archive.directory, schema, replays=archive.replays)


def open_dead_letters(config: TrainConfig) -> DeadLetters:
    """Returns where rejected records go: a topic if the source names one, or the run's folder."""
    kafka = config.source.kafka
    if kafka is not None and kafka.dead_letters is not None:
        return DeadLetterTopic(kafka, kafka.dead_letters.topic)
    return DeadLetterFiles(Path(config.directory) / "dead-letters")


class TrainingProcess:
    """What the roles have in common: settings, model and source.

    Attributes:
        name: This process's own name in the run.
    """

    name: str | None = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        settings = load_settings(arguments.config, arguments.overrides, SECTIONS)
        self._specification = cast(Specification, settings["specification"])
        self._model_config = cast(TwoTowerConfig, settings["model"])
        self._config = cast(TrainConfig, settings["train"])
        check_together(self._specification, self._model_config, self._config)
        if self._model_config.negatives.corpus is not None:
            corpus_directory(self._model_config, self._config)
        self._model = self._make_model()

    def _make_model(self) -> Model:
        from models.two_tower import TwoTower

        return TwoTower(self._specification, self._model_config)

    def _source(self) -> Source:
        return open_source(self._config, self._specification)

    def register_reader(self) -> None:
        """Makes samples readable from graphs in this process, a worker."""
        from streaming.worker.reader import RangeReader, run_name
        from streaming.worker.step import range_inputs

        if self._model.corpus is not None:
            from jobs.corpus import read_corpus

            directory = corpus_directory(self._model_config, self._config)
            corpus = read_corpus(directory, self._model.corpus)
            corpus.register(seed=self._config.seed)
        RangeReader(
            self._source(),
            range_inputs(self._model, self._config.frequency),
            dead_letters=open_dead_letters(self._config),
            stream=self._config.stream,
            seed=self._config.seed,
        ).register(run_name(self._config, self._fingerprints()), name=self.name)

    def coordinate(self, topology: Topology) -> int:
        """Runs the coordinator, and ends this process with its exit code."""
        warn_of_shared_frequencies(self._specification, self._config)
        try:
            # A launcher shows the table itself.
            launched = TABLE_SHOWN in os.environ
            metrics = Path(self._config.directory) / METRICS
            with contextlib.nullcontext() if launched else shown(metrics):
                code = run_job(lambda _: self._life(topology))
        except BaseException:  # noqa: BLE001 - a bug; TensorFlow's threads would keep it alive
            traceback.print_exc()
            code = EXIT_BUG
        return _exit_now(code)

    def _life(self, topology: Topology) -> int:
        from streaming.attempts import PASSING, RestartNeededError
        from streaming.checkpoints.store import NoSpaceError
        from streaming.coordinator import Coordinator
        from streaming.watch.outlets import Lines

        coordinator = Coordinator(
            self._model,
            self._source(),
            config=self._config,
            topology=topology,
            fingerprints=self._fingerprints(),
        )
        if TABLE_SHOWN not in os.environ:
            coordinator.tell(Lines())
        signal.signal(signal.SIGTERM, lambda *_: coordinator.stop())
        started = time.monotonic()
        try:
            ledger = coordinator.run()
        except (RestartNeededError, NoSpaceError, *PASSING) as error:
            first = str(error).partition("\n")[0]
            sys.stderr.write(f"headrace: {type(error).__name__}, to be started again: {first}\n")
            return EXIT_RETRY
        except OSError as error:
            forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
            what = "expected to be allowed to" if forbidden else "to be started again"
            sys.stderr.write(f"headrace: train.directory: {error}; {what}\n")
            return EXIT_BAD_INPUT if forbidden else EXIT_RETRY
        _show(ledger, time.monotonic() - started)
        return EXIT_DONE

    def _fingerprints(self) -> dict[str, str]:
        """Returns what a checkpoint must agree with: what gives its arrays shape and meaning."""
        # In the order in which a difference is told: a table's size before all that it is part of.
        return state_shape(self._model, self._config) | {
            "samples": schema_fingerprint(self._specification.sample_schema),
            "specification": self._specification.fingerprint,
        }


_WIDTHS: Final = "specification.features, model.hidden, model.dim, model.learn_temperature"
_FREQUENCIES: Final = "train.frequency, train.batch_size, model.logq (from or to none)"


def state_shape(model: Model, config: TrainConfig) -> dict[str, str]:
    """Describes, by option, what the saved arrays are; rates and temperatures may change."""
    tables = [f"{each.name} {each.buckets}x{each.dim}" for each in model.tables]
    weights = [f"{each.name} {list(each.shape)}" for each in model.weights]
    kinds = {table.optimizer.kind for table in model.tables}
    kinds |= {weight.optimizer.kind for weight in model.weights}
    shape = {
        "specification.tables": ", ".join(tables),
        _WIDTHS: ", ".join(weights),
        "model.optimizer": ", ".join(sorted(kinds)),
        "model.negatives.bank": "none",
        "model.negatives.corpus.smoothing": "none",
        _FREQUENCIES: "none",
    }
    if model.bank is not None:
        shape["model.negatives.bank"] = f"{model.bank.size}x{model.bank.dim}"
    if model.corpus is not None:
        # Rows of a bank keep their probability; and workers must draw as the coordinator thinks.
        shape["model.negatives.corpus.smoothing"] = f"{model.corpus.smoothing:g}"
    if model.candidate_input is not None:
        # Gaps are counted in mini-batches: with other ones, every stored gap would be wrong.
        frequency = config.frequency
        shape[_FREQUENCIES] = (
            f"{frequency.hashes} hashes of {frequency.buckets} buckets, alpha {frequency.alpha:g},"
            f" per_scenario {frequency.per_scenario}, mini-batches of {config.batch_size}"
        )
    return shape


def _exit_now(code: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


def _show(ledger: Ledger, seconds: float) -> None:
    totals = ledger.totals
    table = Table(title="Training, by the ledger")
    for column in ("records", "samples", "mini-batches", "rejected", "lost", "torn pushes"):
        table.add_column(column, justify="right")
    counts = (
        totals.records,
        totals.samples,
        totals.batches,
        totals.rejects,
        totals.lost,
        totals.torn,
    )
    table.add_row(*[f"{count:,}" for count in counts])
    Console().print(table, f"{seconds:.1f} s in this life of the coordinator", sep="\n")


if __name__ == "__main__":
    sys.exit(run_job(main))
