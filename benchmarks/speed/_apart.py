"""The other end of ``_memory.apart``: one call in a process of its own, its result as the last line."""

import importlib
import json
import sys

import torch

if __name__ == "__main__":
    call = json.loads(sys.argv[1])
    torch.set_num_threads(call["threads"])
    module, _, name = call["function"].partition(":")
    result = getattr(importlib.import_module(module), name)(**call["settings"])
    print(json.dumps(result))
