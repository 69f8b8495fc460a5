"""How many samples a record holds, by partition: what ranges are cut by."""

from __future__ import annotations

from streaming.source import Partition

_WEIGHT = 0.3  # of a new range in the moving average
_SURPRISE = 2.0  # a mean that is so many times larger counts at once: memory is at stake


class RecordSizes:
    """Means of samples per record, from what was read. Not thread-safe.

    A partition that nothing is known of is taken to be like the largest of its topic, or, failing
    that, of all: a first range that is too small costs less than one that is too large.
    """

    def __init__(self, samples_per_range: int) -> None:
        """Begins with nothing known: then a record is taken to be a whole range.

        Args:
            samples_per_range: Samples that a range should hold.
        """
        self._samples_per_range = samples_per_range
        self._means: dict[Partition, float] = {}

    def note(self, partition: Partition, *, records: int, samples: int) -> bool:
        """Notes what was read, and returns whether it changes a range's length twofold or more.

        Args:
            partition: Of which.
            records: Offsets read, those without a record included.
            samples: What they held; none tells nothing.
        """
        if records <= 0 or samples <= 0:
            return False
        before, found = self.of(partition), samples / records
        known = self._means.get(partition)
        if known is None or found > _SURPRISE * known:
            self._means[partition] = found
        else:
            self._means[partition] = known + _WEIGHT * (found - known)
        after = self.of(partition)
        return max(before, after) >= _SURPRISE * min(before, after)

    def of(self, partition: Partition) -> float:
        """Returns about how many samples a record holds, at least 1."""
        mean = self._means.get(partition)
        if mean is None:
            topic = [m for p, m in self._means.items() if p.topic == partition.topic]
            mean = max(topic or self._means.values(), default=float(self._samples_per_range))
        # Offsets without a record must not make ranges longer than asked for.
        return max(1.0, mean)

    def records_per_range(self, partition: Partition) -> int:
        """Returns how many records make a full range."""
        return max(1, int(self._samples_per_range / self.of(partition)))
