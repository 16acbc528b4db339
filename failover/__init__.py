"""Kill the primary of a replicated PostgreSQL under load, and judge what callers were told."""

import os

# grpc reads this when it is imported: with its handlers around a fork, a process that is started may die unheard.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
