r"""The markers around thinking: which are known, and which of those in a text count.

1. Find everything that may matter: markers, line ends, backticks and fences.
2. The first marker that counts decides on the pair of markers; those of other pairs are ordinary text from there on.
3. A quoted marker does not count: between quotation marks or brackets, in inline code that closes on its line, in a
   fenced block of code that closes. Nor does an opening one that is a word of a sentence ("I use <think> tags").
4. Pairs nest: thinking ends where as many markers have closed it as opened it. What follows is the summary, unless
   thinking is opened again or closed again; a closing marker after which nothing is written does not count.

A scan is resumable: its state is a value, so that a text which is being written is read on and taken back in steps, and
read in pieces gives what it gives when read at once.

Source: the chat templates and model cards of the families in `PAIRS`; OpenAI's description of the Harmony format.
"""
