"""Code out, results back: what of a folder goes to a host, and what of a host's folder comes back.

Reading order: `rules.py` and `listing.py` (what goes out and why), `snapshot.py` (its state, by content), `stream.py`
(the conversation with a node's worker), `send.py` (to a host, and away again), `fetch.py` and `landing.py` (back, from
a machine that is not trusted). The node's half is `liborch/agent/worker.py` with `store.py`, `folder.py`, `clean.py`.

Names are imported from these modules; this package imports nothing, so that who needs one does not pay for all.
"""
