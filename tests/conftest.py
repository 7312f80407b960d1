"""One thread for every test, so that bits agree with the workers' and two cores are enough."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
