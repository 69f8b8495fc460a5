"""The demo: MovieLens-100K through every part, run by `headrace demo`.

Read `movielens` (ratings to event logs), `main` and `steps`, `study` (what was learned), `report`.
"""
