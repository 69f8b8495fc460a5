"""The state and the ledger on disk: `store` (files) > `saver` (beside training) > `saves` (when).

`newest` tells which checkpoints there are, `lives` which coordinator may write; `reposition` writes
one again, with another ledger.
"""
