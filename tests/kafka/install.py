"""Fetches the jars of a real Apache Kafka for tests: `python -m tests.kafka.install`.

They go to `.cache/kafka` under the project (or below `$HEADRACE_CACHE`), are fetched through Maven
once per version of `pom.xml`, and need no network afterwards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_POM = _HERE / "pom.xml"


class KafkaMissingError(RuntimeError):
    """A real broker cannot be started here; the message says what is missing and how to get it."""


def cache_directory() -> Path:
    """Returns where this version's jars and class-data archive are, or will be."""
    cache = Path(os.environ.get("HEADRACE_CACHE") or _HERE.parents[1] / ".cache")
    return cache / "kafka" / hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]


def require_java() -> str:
    """Returns the path of `java`, or raises KafkaMissingError."""
    return _require("java", package="openjdk-17-jre-headless")


def installed_jars() -> Path:
    """Returns the folder of the jars, or raises KafkaMissingError."""
    jars = cache_directory() / "jars"
    if not jars.is_dir():
        raise KafkaMissingError(
            f"no Kafka jars in {jars}: run `make kafka` (or `python -m tests.kafka.install`)"
        )
    return jars


def install() -> Path:
    """Fetches the jars and makes the class-data archive, if they are not there already."""
    java = require_java()
    jars = cache_directory() / "jars"
    if not jars.is_dir():
        _fetch(jars)
    archive = cache_directory() / "classes.jsa"
    if not archive.exists():
        _record_classes(archive)
    if not archive.exists():
        sys.stderr.write(f"no class-data archive from {java}: brokers start 2 s slower\n")
    return jars


def _fetch(jars: Path) -> None:
    maven = _require("mvn", package="maven")
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent) as aside:
        command = [maven, "-B", "-ntp", "-q", "-f", str(_POM), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={aside}/jars"]
        # Maven remembers a failed look-up for a day; -U makes the second try ask again.
        if subprocess.run(command, check=False).returncode:
            again = subprocess.run([*command, "-U"], check=False)
            if again.returncode:
                raise KafkaMissingError(f"Maven could not fetch Kafka's jars: {' '.join(command)}")
        (Path(aside) / "jars").rename(jars)


def _record_classes(archive: Path) -> None:
    """Runs a broker once, to make later starts take 2 s instead of 4."""
    from tests.kafka.broker import Broker

    with tempfile.TemporaryDirectory() as directory:
        broker = Broker(Path(directory), java_options=[f"-XX:ArchiveClassesAtExit={archive}"])
        broker.start()
        broker.stop(timeout_seconds=60)


def _require(program: str, *, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise KafkaMissingError(f"no `{program}` on the PATH: apt-get install {package}")
    return path


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{install()}\n")
    except KafkaMissingError as error:
        sys.exit(str(error))
