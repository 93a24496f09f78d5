"""One module per command, each with a click command called `command`: it parses, calls, prints."""
