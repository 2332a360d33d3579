"""Pages to look at a dataset in a browser: pure functions from a home and a request to HTML or bytes.

The server is flows/browse.py. What the pages read goes through the fenced catalog; what they write are decisions
(catalog/decisions.py) alone.
"""
