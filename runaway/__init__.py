"""Run code on a remote host: one execution, a batch, or what an online scheduler asks for. Thin: parse, call, print."""
