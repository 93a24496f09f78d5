"""Fixtures for all tests. The lab's hosts come from `tests/lab/plugin.py`."""

pytest_plugins = ["tests.lab.plugin"]
