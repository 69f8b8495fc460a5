"""`headrace join`: the job around `streaming.joining`."""
