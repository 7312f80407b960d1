"""Does somebody else's store or executor keep the contract? Test classes to subclass; they need pytest, this does not.

from batchscope.testing.store_contract import StoreContract
"""
