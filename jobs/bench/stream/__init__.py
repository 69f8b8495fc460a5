"""`headrace bench stream`. Read `main`, then `synthetic` (its samples), then what it times.

Each variant runs in processes of its own: `cluster` starts one whose processes are `process`,
`alone` is the same trainer without a cluster.
"""
