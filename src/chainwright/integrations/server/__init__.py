"""An OpenAI-compatible server whose requests decode with repairs.

    config      the settings of a server
    engine      one thread that decodes; the queue
    lane        rows that decode together, which come and go between tokens
    caches      keys and values of a batch whose rows come and go
    choice      one answer that is being written: draws, ends, log-probabilities
    writing     what of a text may be sent already; thinking apart from the answer
    echo        log-probabilities of prompts
    protocol    what a request may hold
    asking      from a request to prompts and sampling
    answers     from what was written to the bodies of responses
    routes, metrics, app    the web side

Only `routes`, `metrics` and `app` import the web framework.
"""
