"""Data checks: a day's samples against the last good days.

Read `sketch` (distinct values in little memory), `profile` (what is kept of a table), `limits`
(what the specification allows), `drift` (two profiles to findings).
"""
