"""Impressions with their outcomes, a piece of the log at a time.

Read in this order:

    runs                rows in memory, found by a hash of their key and taken by their time
    step                which outcome belongs to which impression: one call per piece of the log
    labels              which impressions are positives, and of what reward
    exposed, histories  what else a retrieval sample says: shown beside it, taken before it
    stream              samples of a log without an end

Batch and stream go through the same `step`: the one calls it once with all there is, the other
every half second with what came. How the log is cut changes nothing in what comes out.
"""
