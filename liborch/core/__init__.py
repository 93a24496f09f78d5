"""Decides. No IO, no asyncio, no clock, no randomness of its own: see `machine.Orchestration`."""
