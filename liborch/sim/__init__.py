"""The world on a desk: a node's agent in memory, a seeded faulty world in virtual time, a loop that never sleeps.

Ships with the library for `--simulate` and for the tests of programs that embed it; nothing else imports it.
"""
