"""Leave hyper-parameter search to algorithms."""
