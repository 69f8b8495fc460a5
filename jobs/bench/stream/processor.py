"""How much processor time a process and its descendants have used, as Linux counts it."""

from __future__ import annotations

import os
from pathlib import Path

_PARENT, _USER, _SYSTEM = 1, 11, 12  # fields of /proc/PID/stat after the name


def processor_seconds(root: int) -> float:
    """Returns user and system seconds of a process and of all its living descendants.

    Args:
        root: The process's id.
    """
    fields = dict(_fields())
    wanted, found = [root], 0
    while wanted:
        process = wanted.pop()
        if process in fields:
            found += int(fields[process][_USER]) + int(fields[process][_SYSTEM])
        wanted += [child for child, values in fields.items() if int(values[_PARENT]) == process]
    return found / os.sysconf("SC_CLK_TCK")


def _fields() -> list[tuple[int, list[str]]]:
    result = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it ended meanwhile
            continue
        result.append((int(folder.name), text.rpartition(")")[2].split()))
    return result
