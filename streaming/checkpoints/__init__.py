"""The state and the ledger on disk: `store` (files) > `saver` (beside training) > `saves` (when).

`lives` says which coordinator may write; `reposition` writes one again, with another ledger.
"""
