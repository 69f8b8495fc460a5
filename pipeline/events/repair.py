"""Rejected rows sent through again, once they, or the specification, are repaired.

Those that are events now go to `OUTPUT.runs/repaired/`, which every later build reads beside the
logs: a day that is built again has them still. The rows of the logs that they stand for are
rejected as before, and count as repaired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import durable
from pipeline import schema as s
from pipeline.days import MS_PER_DAY
from pipeline.events.json_lines import parse_json_lines
from pipeline.events.read import RawBlock
from pipeline.events.rejects import read_rejects
from pipeline.events.validate import checks, count_reasons, needed_types, validate
from pipeline.specification import Specification

SOURCE_FILE: Final = "headrace_rejected_file"
SOURCE_ROW: Final = "headrace_rejected_row"


@dataclasses.dataclass(frozen=True, slots=True)
class Repair:
    """What became of a folder of rejected rows.

    Attributes:
        accepted: Rows that are events now.
        known: Rows that were repaired before, as they are now.
        rejects: Rows that still are none, by reason; they stay where they are.
        days: The days whose samples these rows, accepted now or before, may change.
    """

    accepted: int
    known: int
    rejects: dict[str, int]
    days: list[int]


def repaired_files(output: Path) -> list[Path]:
    """Returns the files of repaired rows that belong to an output, oldest first."""
    return sorted(_folder(output).glob("*.parquet"))


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.runs") / "repaired"


def repair(
    folder: Path,
    output: Path,
    specification: Specification,
    *,
    window_ms: int,
    outcomes_need_features: bool,
) -> Repair:
    """Validates rejected rows again and keeps those that pass.

    Args:
        folder: Rejected rows, as `headrace samples` left them or with `raw` repaired.
        output: The samples' output.
        specification: What the rows must be now.
        window_ms: The join window: an outcome changes samples of so long before it.
        outcomes_need_features: See `pipeline.events.validate.checks`.

    Raises:
        InputError: If `folder` has no rejected rows.
    """
    found = [reject for _, reject in read_rejects(folder)]
    types = needed_types(specification)
    # No line of JSON has a line break but between its tokens.
    lines = b"".join(reject["raw"].replace(b"\n", b" ") + b"\n" for reject in found)
    table, rows, malformed, num_lines = parse_json_lines(lines, types)
    block = RawBlock(table, rows, num_lines, malformed, lines)
    rules = checks(specification, outcomes_need_features=outcomes_need_features)
    events, rejects = validate(block, rules)
    bad = {reject.row for reject in rejects}
    good = [number for number in rows if number not in bad]
    events = events.append_column(SOURCE_FILE, pa.array([found[n]["file"] for n in good], "string"))
    events = events.append_column(SOURCE_ROW, pa.array([found[n]["row"] for n in good], "int64"))
    new = _without_known(events, repaired_files(output))
    if new.num_rows:
        _keep(new, output)
    return Repair(
        accepted=new.num_rows,
        known=events.num_rows - new.num_rows,
        rejects=count_reasons(rejects),
        days=_days(events, window_ms),
    )


def _without_known(events: pa.Table, files: Iterable[Path]) -> pa.Table:
    known = {row for path in files for row in _identities(pq.read_table(path))}
    is_new = [row not in known for row in _identities(events)]
    return events.filter(pa.array(is_new, pa.bool_()))


def _identities(events: pa.Table) -> list[tuple[object, ...]]:
    names = (SOURCE_FILE, SOURCE_ROW, s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, s.ACTION)
    return list(zip(*(events[name].to_pylist() for name in names), strict=True))


def _keep(events: pa.Table, output: Path) -> None:
    folder = _folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(path.stem) for path in repaired_files(output)), default=0) + 1
    sink = pa.BufferOutputStream()
    pq.write_table(events, sink)
    durable.write(folder / f"{number:05d}.parquet", sink.getvalue().to_pybytes())


def _days(events: pa.Table, window_ms: int) -> list[int]:
    times = events[s.TIMESTAMP_MS].to_numpy()
    last = times // MS_PER_DAY
    first = (times - window_ms) // MS_PER_DAY
    spans = np.unique(np.stack([first, last], axis=1), axis=0)
    return sorted({day for start, end in spans for day in range(int(start), int(end) + 1)})


def count_repaired(files: Sequence[Path], logs: Iterable[str]) -> int:
    """Returns how many rows of some logs were rejected and are repaired."""
    wanted = set(logs)
    rows = set()
    for path in files:
        table = pq.read_table(path, columns=[SOURCE_FILE, SOURCE_ROW])
        pairs = zip(table[SOURCE_FILE].to_pylist(), table[SOURCE_ROW].to_pylist(), strict=True)
        rows |= {pair for pair in pairs if pair[0] in wanted}
    return len(rows)
