"""Chainwright in vLLM: heads knocked out, and tokens corrected, per request.

A plug-in of vLLM's group `vllm.general_plugins`: once the package is installed, `vllm serve` and `vllm.LLM` load it by
themselves. A request says what it wants in its extra arguments, `{"chainwright": {...}}` (`spec`).

Where things are, from the request inwards:

    admission    a request's wish is checked where it enters, and made canonical
    caching      blocks of the prefix cache and compiled graphs know about it
    scheduling   an edit that did not act ends its request with an error
    holding      a request with a doubtful token waits for runs without single heads
    worker       what one model runner keeps: which requests ask for what, and what has acted
    runner_v1, runner_v2   where vLLM's two model runners fill the tables before each pass
    heads, slots the pre-hooks on the output projections, and the two tables that they read
    states       what layers put out at the last token of each request
    doubts       what was seen at doubtful tokens, and what the runs said
    repairs, tcr, networks   a saved repair, and what it makes of both
    stepflow, bridging       a saved StepFlow, and what it changes of attention on a CPU
    weights, fingerprint     whether it was made for the weights that are served
"""

__version__ = "0.1.0"
