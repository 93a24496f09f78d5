"""Acts: the asyncio side. Feeds the core events, carries out its actions, hands back futures.

Start reading at `driver`, then `link` (one agent), `targets` (how a link is opened) and `transfers`.
"""
