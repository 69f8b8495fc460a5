"""The cross-batch bank on a parameter server: candidates of the latest mini-batches, FIFO.

After Wang et al., SIGIR 2021 (CBNS): vectors of former mini-batches are negatives of this one, with
the probability that was estimated when they were made. What the article leaves open is decided so:

- Rows carry the item's identity, by which accidental hits are masked.
- The bank is filled during warm-up and not used; at its end it holds the latest vectors.
- It lives whole on one server, the last: a queue has one end, and 50,000 rows of 64 are 13 MB.
- A range pulls it whole, appends to its copy step by step, and pushes its new rows, which go behind
  whatever others pushed meanwhile. Pushes count once, as all else does.
"""

from __future__ import annotations

import tensorflow as tf

from models.contract import BankShape, Candidates


class Bank:
    """The variables of a bank, and how a range's rows come in.

    Attributes:
        shape: What the model asked for.
        rows: [size] candidates; those up to the cursor are filled.
        cursor: How many candidates were ever enqueued; the next one goes to row cursor mod size.
    """

    def __init__(self, shape: BankShape, device: str) -> None:
        self.shape = shape
        self.device = device
        with tf.device(device):
            self.rows = Candidates(
                tf.Variable(tf.zeros([shape.size, shape.dim]), trainable=False),
                tf.Variable(tf.zeros([shape.size], tf.int64), trainable=False),
                tf.Variable(tf.zeros([shape.size]), trainable=False),
                tf.Variable(tf.zeros([shape.size]), trainable=False),
            )
            self.cursor = tf.Variable(0, dtype=tf.int64, trainable=False)

    def trackables(self) -> dict[str, tf.Variable]:
        """Returns what a checkpoint holds, by name."""
        named = {f"bank/{name}": rows for name, rows in self.rows._asdict().items()}
        return named | {"bank/cursor": self.cursor}

    def pull(self) -> tuple[Candidates, tf.Tensor]:
        """Returns the whole bank and its cursor."""
        with tf.device(self.device):
            # The cursor first: a push in between shows as rows newer than it says, never as rows
            # that were not written.
            cursor = self.cursor.read_value()
            with tf.control_dependencies([cursor]):
                rows = [tf.identity(values.read_value()) for values in self.rows]
        return Candidates(*rows), cursor

    def append(
        self, new: Candidates, *, num_samples: tf.Tensor, fresh: tf.Tensor
    ) -> list[tf.Operation]:
        """Enqueues a range's candidates where they count; the caller holds the server's mutex.

        Args:
            new: [min(num_samples, size)] the latest of them, oldest first.
            num_samples: int64 scalar, how many the range had.
            fresh: bool scalar, False for a push that has been applied before.

        Returns:
            The operations.
        """
        kept = tf.where(fresh, tf.size(new.identity, out_type=tf.int64), 0)
        cursor = self.cursor.read_value()
        last = cursor + num_samples
        places = (last - kept + tf.range(kept)) % self.shape.size
        done = [
            tf.raw_ops.ResourceScatterUpdate(
                resource=variable.handle, indices=places, updates=values[:kept]
            )
            for variable, values in zip(self.rows, new, strict=True)
        ]
        with tf.control_dependencies(done):
            moved = tf.where(fresh, num_samples, tf.zeros_like(num_samples))
            return [*done, tf.raw_ops.AssignAddVariableOp(resource=self.cursor.handle, value=moved)]
