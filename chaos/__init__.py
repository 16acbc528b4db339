"""Break the whole system at random under load, and judge whether its promises hold."""

import os

# grpc reads this when it is imported: nothing here forks with it, and it would say so at every start of a process.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
