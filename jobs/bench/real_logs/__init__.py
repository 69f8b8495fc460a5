"""Two public logs as event logs of ours, for tests, examples and benchmarks.

convert     what is real in them, what is made up, and how
__main__    `python -m jobs.bench.real_logs taobao --data DIR --out DIR`
"""
