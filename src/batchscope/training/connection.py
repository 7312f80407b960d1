"""Does an error say that the ranks lost each other? Then another rank is to blame, or the network: not the task.

What torch raises where a collective fails is one of its own kinds (NCCL, the store where the ranks meet), or a plain
RuntimeError: in a backward pass with gloo's own words, elsewhere from the line that calls the collective.
"""

from __future__ import annotations

import traceback

import torch.distributed as dist

from batchscope.training.device import is_out_of_memory

COLLECTIVES = ("torch/distributed/distributed_c10d.py", "torch/distributed/rendezvous.py")
SIGNS = ("gloo/transport", "gloo connect", "connection closed by peer", "nccl error", "nccl communicator was aborted")


def is_of_connection(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was raised from, means that a connection to other ranks broke."""
    while error is not None:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raised = [frame.filename for frame in traceback.extract_tb(error.__traceback__)[-1:]]
            if isinstance(error, dist.DistError) or any(file.endswith(COLLECTIVES) for file in raised):
                return True
            if any(sign in str(error).lower() for sign in SIGNS):
                return True
        error = error.__cause__ or error.__context__
    return False
