"""`headrace bench join`: the live joiner beside quixstreams, on one broker in one run.

Read in this order:

    events         a synthetic stream of impressions and outcomes, and which samples are in it
    topics         what the benchmark itself sends to Kafka and reads from it
    producer       the stream as it happens: a process that sends each event when it is due
    headrace       processes of `headrace join`
    rival          processes of the rival, in an environment of their own
    quix_program   what those run
    backlog        how fast what has piled up is joined
    live           how long samples take; processes that are killed, or started twice
    main           which of it, with what numbers; the report
"""
