"""Orchestra's non-blocking core library: hosts, slots and executions as awaitables."""
