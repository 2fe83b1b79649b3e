"""Processes of their own for a test, forked from one that has imported everything and done nothing yet.

Each shares nothing with the test and with the others but what it is given, as a new interpreter would; but that takes
half a second for its imports, longer than most of these processes run.
"""

import multiprocessing
from multiprocessing.context import ForkServerContext


def forking() -> ForkServerContext:
    """What makes processes, pipes and barriers; `multiprocessing` imports the function that a process is to run."""
    context = multiprocessing.get_context("forkserver")
    # One server forks for the whole test process: what the first test to ask names is what is imported beforehand.
    context.set_forkserver_preload(["pytest", "alembic.command", "psycopg", "tests.support.world"])
    return context
