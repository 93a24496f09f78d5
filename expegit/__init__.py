"""Keep a campaign of experiments in git."""
