"""Benchmarks, one module each, run by `headrace bench NAME`; `report` prints and writes them."""
