"""Where is what was measured kept? In one file: `with open_store("batchscope.db") as store: ...`

base.py is the contract, sqlite.py the store that comes with Batchscope, schema.sql its tables.
"""

from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.store.replies import Attempt, Lease, NoiseSummary, SeenTask, StudySummary
from batchscope.store.sqlite import SqliteStore, open_store

__all__ = [
    "Attempt",
    "Lease",
    "NoiseSummary",
    "Owner",
    "SeenTask",
    "SqliteStore",
    "Store",
    "StudySummary",
    "open_store",
]
