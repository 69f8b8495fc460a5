"""The `headrace` command: finds the job of a command, runs it, and turns errors into exit codes."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from jobs.settings import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RETRY, SettingsError

Main = Callable[[Sequence[str] | None], int]

# In the order in which a sample passes them.
COMMANDS: Final[dict[str, dict[str, str]]] = {
    "Samples": {
        "samples": "event logs to training samples, dt=YYYY-MM-DD/*.parquet with a manifest (Beam)",
        "publish": "sample files, or event logs, to a Kafka topic: at once, or by event time",
        "join": "events from Kafka, joined as they come, to a topic of samples, exactly once",
    },
    "Training": {
        "train": "a stream of samples to parameters: coordinator, parameter servers, workers",
        "offsets": "where a run stands in its stream: show, export, reset, forget",
        "evaluate": "a checkpoint against the samples of a later time: hit rate, NDCG",
    },
    "Serving": {
        "export": "a checkpoint to a bundle of SavedModels with an index",
        "query": "a bundle asked for one user's items",
    },
    "Try it": {
        "demo": "all of the above on MovieLens-100K, with a report",
        "bench": "benchmarks, each with a table and a JSON file",
    },
}

_ROOMS = ("pipeline", "models", "streaming", "jobs")
_INTERRUPTED = 130
_FILE_WIDTH = "160"
_KERAS = "tf_keras.src.optimizers"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `headrace COMMAND ...` and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = [name for group in COMMANDS.values() for name in group]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return EXIT_DONE
    command, *rest = arguments
    if command == "--version":
        sys.stdout.write(f"headrace {_version()}\n")
        return EXIT_DONE
    if command not in known:
        near = difflib.get_close_matches(command, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        sys.stderr.write(
            f"headrace: found command {command!r}; expected one of {', '.join(known)}{hint}\n"
        )
        return EXIT_BAD_INPUT
    _set_up_logging()
    if not sys.stdout.isatty():  # tables whose numbers are cut are of no use in a file
        os.environ.setdefault("COLUMNS", _FILE_WIDTH)
    module = f"jobs.{command}.main" if command in ("bench", "demo", "join") else f"jobs.{command}"
    try:
        job: Main = importlib.import_module(module).main
        return run_job(job, rest)
    except KeyboardInterrupt:  # or Python would show where in an import it was
        return _interrupted()


def import_tensorflow() -> None:
    """Imports TensorFlow without the lines that its C++ prints before any log level holds.

    If the import fails, they are shown. For a job whose arguments and configuration are good:
    nobody should wait for it to be told of a slip.
    """
    _without_keras()
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for a GPU now, not amid our own lines
        except BaseException:
            kept.seek(0)
            os.write(shown, kept.read())
            raise
        finally:
            if sys.modules.get(_KERAS, sys) is None:
                del sys.modules[_KERAS]
            os.dup2(shown, 2)
            os.close(shown)


def follow_parent() -> None:
    """Ends this process when its launcher is gone, however that ended."""
    parent = os.environ.get("HEADRACE_PARENT")
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os._exit(EXIT_RETRY)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


def _without_keras() -> None:
    """Has TensorFlow not import Keras with itself, which nothing here uses: a third of its start.

    TensorFlow does so for SavedModels that hold Keras optimizers, and goes on where it cannot. Who
    wants Keras imports it as always. Each process that comes back after a crash is back sooner.
    """
    if "tensorflow" not in sys.modules:
        # None is how Python marks a module that must not be imported.
        sys.modules.setdefault(_KERAS, None)  # type: ignore[arg-type]


def run_job(job: Main, argv: Sequence[str] | None = None) -> int:
    """Runs a job's `main` and turns the errors that a person can mend into text and an exit code.

    Use it under `if __name__ == "__main__"` of a job: `sys.exit(run_job(main))`.

    Returns:
        The job's own code; 2 for wrong configuration or data; 75 if something is away for a while;
        130 after Ctrl-C. Any other exception is a bug and keeps its traceback.
    """
    # Not at the top: `headrace --help` must not wait for Arrow.
    from pipeline.schema import InputError
    from streaming.source import SourceUnavailableError

    _set_up_logging()
    try:
        return job(argv)
    except (SettingsError, InputError) as error:
        _say("cannot run", error)
        return EXIT_BAD_INPUT
    except SourceUnavailableError as error:
        _say("not now", error)
        return EXIT_RETRY
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        _say("cannot run", error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return _interrupted()


def _interrupted() -> int:
    sys.stderr.write("headrace: interrupted\n")
    return _INTERRUPTED


def _say(what: str, error: Exception) -> None:
    lines = "".join(f"  {line}\n" for line in str(error).splitlines())
    sys.stderr.write(f"headrace: {what}:\n{lines}")


def _set_up_logging() -> None:
    # TensorFlow's C++ reads its level once, when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # What it says of lost workers and servers, we say in one line; errors are raised all the same.
    logging.getLogger("tensorflow").setLevel(logging.CRITICAL)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Beam tells everybody who runs it without Google Cloud's libraries, at every start.
    logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
    for room in _ROOMS:
        logging.getLogger(room).setLevel(os.environ.get("HEADRACE_LOG", "INFO"))


def _overview() -> str:
    lines = [
        "headrace: interaction logs to served recommenders, continuously",
        "",
        "usage: headrace COMMAND [--config FILE] [--set path=value ...]",
        "       headrace COMMAND --help",
    ]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:<9} {text}" for name, text in commands.items())]
    lines += [
        "",
        "Exit codes: 0 done, 1 a bug (with its traceback), 2 wrong configuration or data,",
        "75 something is away for a while: run again, 130 after Ctrl-C.",
        "HEADRACE_LOG=WARNING makes it quieter, DEBUG louder.",
    ]
    return "\n".join(lines) + "\n"


def _version() -> str:
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
