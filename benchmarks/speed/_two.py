"""The step of a DDP training in one or two processes over gloo, with an average and without: its seconds, printed."""

import os
import socket
import sys
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.speed._nets import images, seeded, small_cnn
from lightning_objectives._weights.averages import Averages
from lightning_objectives.averaging import EMA


def work(rank: int, count: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=count)
    network = seeded(small_cnn)
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    averages = Averages(network, {"ema": EMA()})
    inputs, target = images(32, 28, channels=1)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in range(60):
        start = perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), target).backward()
        optimizer.step()
        if step % 2:
            averages.update(1)
        if step >= 10:
            seconds[bool(step % 2)].append(perf_counter() - start)
    dist.barrier()
    if rank == 0:
        print(median(seconds[False]), median(seconds[True]), flush=True)
    dist.destroy_process_group()


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = int(sys.argv[1])
    torch.multiprocessing.spawn(work, (count, port), nprocs=count)


if __name__ == "__main__":
    main()
