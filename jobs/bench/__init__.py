"""Benchmarks, run by `headrace bench NAME`: a module or a package each; `report` is common."""
