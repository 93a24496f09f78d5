"""The journal: the durable record of events, and of what they mean for executions.

Start reading at `rows` (what goes in and out), then `store` and `reading` (Journal), `writer` (the asyncio side) and
`locks` (who drives an orchestration). `opening`, `schema`, `statements` and `storage` are what they stand on.
"""

from liborch.journal.locks import DriverLock
from liborch.journal.rows import Change, ExecutionRow, Group, NewExecution, OrchestrationRow
from liborch.journal.store import Journal
from liborch.journal.writer import Writer

__all__ = [
    "Change",
    "DriverLock",
    "ExecutionRow",
    "Group",
    "Journal",
    "NewExecution",
    "OrchestrationRow",
    "Writer",
]
