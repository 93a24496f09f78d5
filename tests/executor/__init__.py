"""The executor: hosts for programs that are not asyncio."""
