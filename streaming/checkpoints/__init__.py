"""The state and the ledger on disk: `store` (files) > `saver` (when, and beside training).

`lives` says which coordinator may write; `reposition` writes one again, with another ledger.
"""
