"""The demo's steps: each is the command that a user would type, run as its own process.

Only the evaluation happens here, since it compares the runs on the same questions.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.demo import movielens, study
from jobs.demo.main import CONFIG
from jobs.demo.report import (
    COLOURS,
    Method,
    QueryExample,
    Report,
    TrainingRun,
    write_report,
)
from jobs.demo.summary import facts, protocol, result_tables, stages
from jobs.export import load_samples, load_trained
from jobs.settings import load_settings
from models.config import TwoTowerConfig
from models.evaluate import Evaluation, Questions, evaluate_model, evaluate_popularity
from pipeline.manifest import Manifest, read_manifest
from pipeline.samples import SamplesConfig
from pipeline.schema import InputError
from pipeline.specification import Specification
from streaming.checkpoints.store import load_checkpoint
from streaming.config import TrainConfig

_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "specification": Specification,
    "samples": SamplesConfig,
    "model": TwoTowerConfig,
    "train": TrainConfig,
}
_MARK: Final = ".headrace-demo"
_METHODS: Final = {"plain": "without logQ", "logq": "with logQ"}
_TAIL_LINES: Final = 15


class StepFailedError(RuntimeError):
    """A command of the demo ended with another code than 0.

    Attributes:
        code: The code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Demo:
    """One run of the demo, in one folder that is its own."""

    def __init__(self, output: Path, *, overrides: Sequence[str], console: Console) -> None:
        self._output = output
        self._overrides = list(overrides)
        self._console = console
        self._seconds: dict[str, float] = {}
        self._specification: Specification = self._settings("logq", 1)["specification"]

    def run(self, archive: Path, *, seeds: Sequence[int]) -> Report:
        """Runs every step, prints the results and writes the report."""
        self._make_room()
        with self.timed("logs"):
            logs = movielens.write_logs(movielens.ratings(archive), self._output / "logs")
        with self.timed("samples"):
            self._make_samples("train", [logs.train])
            self._make_samples("all", [logs.train, logs.test])
        manifest = read_manifest(self._samples("train"))
        for run, seed in _runs(seeds):
            with self.timed(f"train {self._name(run, seed)}"):
                self._train(run, seed, expected=self._expected(manifest))
        with self.timed("evaluate"):
            training, asked = self._questions(logs.cut_ms)
            methods = self._evaluate(asked, seeds)
        with self.timed("export and query"):
            example = self._serve(seeds[0])
        settings = self._settings("logq", seeds[0])
        report = Report(
            popularity=methods["popularity"],
            plain=methods["plain"],
            logq=methods["logq"],
            runs=[self._account(run, seed, manifest) for run, seed in _runs(seeds)],
            frequencies=study.frequencies(self._run("logq", seeds[0]), training, settings["train"]),
            stages=stages(manifest, asked),
            rejects=manifest.rejects,
            query=example,
            facts=facts(settings, seeds),
            protocol=protocol(asked, training, cut_ms=logs.cut_ms, num_seeds=len(seeds)),
            planted=logs.planted_malformed,
            workers=settings["train"].cluster.workers,
            config=CONFIG.read_text(encoding="utf-8"),
            seconds=self._seconds,
        )
        write_report(report, self._output / "report.html")
        self._show(report)
        return report

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Says what is done now, and how long it took."""
        self._console.print(f"[bold]{step}[/bold]")
        start = time.monotonic()
        yield
        self._seconds[step] = time.monotonic() - start

    def _make_room(self) -> None:
        """Empties the demo's folder; refuses one that is not the demo's."""
        mark = self._output / _MARK
        if self._output.exists() and any(self._output.iterdir()) and not mark.exists():
            raise InputError(
                f"--output: found {self._output} with files that are not the demo's; expected a"
                " folder that is empty, new, or of a former demo"
            )
        self._output.mkdir(parents=True, exist_ok=True)
        mark.touch()
        for path in self._output.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != mark:
                path.unlink()

    # Paths and settings.

    def _samples(self, which: str) -> Path:
        return self._output / "samples" / which

    @staticmethod
    def _name(run: str, seed: int) -> str:
        return run if seed == 1 else f"{run}-{seed}"

    def _run(self, run: str, seed: int) -> Path:
        return self._output / "runs" / self._name(run, seed)

    def _run_overrides(self, run: str, seed: int) -> list[str]:
        values = {
            "samples.output": str(self._samples("train")),
            "train.directory": str(self._run(run, seed)),
            "train.source.archive.directory": str(self._samples("train")),
            "train.seed": seed,
            "model.logq": "all" if run == "logq" else "none",
            "export.output": str(self._output / "bundles"),
        }
        return [*self._overrides, *(f"{path}={json.dumps(v)}" for path, v in values.items())]

    def _settings(self, run: str, seed: int) -> dict[str, Any]:
        return load_settings(CONFIG, self._run_overrides(run, seed), _SECTIONS)

    def _expected(self, manifest: Manifest) -> int:
        replays: int = self._settings("logq", 1)["train"].source.archive.replays
        return manifest.counts["retrieval samples"] * replays

    # Steps.

    def _make_samples(self, which: str, inputs: Sequence[Path]) -> None:
        folders = json.dumps([str(path) for path in inputs])
        output = json.dumps(str(self._samples(which)))
        self._headrace(
            "samples",
            overrides=[*self._overrides, f"samples.inputs={folders}", f"samples.output={output}"],
        )

    def _train(self, run: str, seed: int, *, expected: int) -> None:
        columns = (
            TextColumn("  {task.completed:,.0f} of {task.total:,.0f} samples"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        metrics = self._run(run, seed) / "metrics.jsonl"
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("train", total=expected, loss="starting the cluster")

            def update() -> None:
                if entry := last_entry(metrics):
                    loss = f"loss {entry.get('train/loss', float('nan')):.3f}"
                    progress.update(task, completed=entry["stream/samples"], loss=loss)

            self._headrace(
                "train", "--local", overrides=self._run_overrides(run, seed), tick=update
            )

    def _headrace(
        self,
        command: str,
        *arguments: str,
        overrides: Sequence[str] = (),
        tick: Callable[[], None] | None = None,
        show: bool = False,
    ) -> None:
        """Runs a command in a process of its own; its output goes to a log, or is shown."""
        words = [sys.executable, "-m", "jobs.main", command, *arguments]
        if overrides:
            words += ["--config", str(CONFIG)]
            words += [word for override in overrides for word in ("--set", override)]
        number = len(list(self._output.glob("*.log"))) + 1
        log = self._output / f"{number:02d}-{command}.log"
        with log.open("wb") as out:
            handle = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
            try:
                while (code := handle.poll()) is None:
                    time.sleep(0.1)
                    if tick is not None:
                        tick()
                if tick is not None:
                    tick()
            finally:
                if handle.poll() is None:
                    handle.terminate()
                    handle.wait()
        text = log.read_text(encoding="utf-8", errors="replace")
        if code:
            tail = "\n  ".join(text.splitlines()[-_TAIL_LINES:])
            raise StepFailedError(f"`headrace {command}` ended with {code}; {log}:\n  {tail}", code)
        if show:
            self._console.print(text, markup=False, highlight=False)

    def _questions(self, cut_ms: int) -> tuple[pa.Table, Questions]:
        training = load_samples(self._samples("train"), self._specification)
        samples = load_samples(self._samples("all"), self._specification)
        asked = study.future_questions(
            samples, training=training, cut_ms=cut_ms, specification=self._specification
        )
        return training, asked

    def _serve(self, seed: int) -> QueryExample:
        """Exports a run with logQ, and asks the bundle."""
        self._headrace("export", overrides=self._run_overrides("logq", seed))
        model = self._output / "bundles" / self._specification.name
        user, scenario = study.example_user(model)
        who = ["--user", str(user), "--scenario", scenario]
        self._headrace("query", "--bundle", str(model), *who, show=True)
        return study.ask(model, user, scenario)

    def _evaluate(self, asked: Questions, seeds: Sequence[int]) -> dict[str, Method]:
        found: dict[str, list[Evaluation]] = {"popularity": [evaluate_popularity(asked)]}
        for run in _METHODS:
            found[run] = []
            for seed in seeds:
                model = self._settings(run, seed)["model"]
                trained = load_trained(self._run(run, seed), self._specification, model)
                result = evaluate_model(trained.model, trained.parameters, asked)
                found[run].append(result)
        return {
            name: Method(
                name=_METHODS.get(name, name), colour=COLOURS[name], evaluations=evaluations
            )
            for name, evaluations in found.items()
        }

    def _account(self, run: str, seed: int, manifest: Manifest) -> TrainingRun:
        curve, rate = study.read_metrics(self._run(run, seed) / "metrics.jsonl")
        ledger = load_checkpoint(self._run(run, seed) / "checkpoints").ledger
        return TrainingRun(
            name=_METHODS[run] if seed == 1 else f"{_METHODS[run]}, seed {seed}",
            colour=COLOURS[run],
            curve=curve,
            samples_per_second=rate,
            expected_samples=self._expected(manifest),
            totals=ledger["totals"],
        )

    def _show(self, report: Report) -> None:
        for table in result_tables(report):
            self._console.print(table)
        took = sum(self._seconds.values())
        self._console.print(f"{took:.0f} s in all; report: {self._output / 'report.html'}")


def _runs(seeds: Sequence[int]) -> list[tuple[str, int]]:
    return [(run, seed) for seed in seeds for run in _METHODS]


def last_entry(path: Path) -> dict[str, Any] | None:
    """Returns the last whole line of a file of JSON lines, or None."""
    if not path.exists():
        return None
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return json.loads(whole[-1]) if whole else None
