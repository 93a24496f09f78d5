"""The program on a node. Standard library only, Python 3.6 and newer; see ARCHITECTURE.md for its three processes.

`pack.py` is the exception: it runs on the client, where it turns this folder into the one file that is sent.
"""
