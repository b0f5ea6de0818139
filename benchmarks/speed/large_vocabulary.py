"""Cross entropy behind a large vocabulary: 4096 tokens x 768 -> 50,257 words, float32, forward and backward.

Each variant is a process of its own. The limit is the three matrix products. The package has no loss of this kind:
torch's own, in chunks, is what to use, and is measured here beside the others; the same is promised of the few lines by
hand, which show what can be had. Two bfloat16 lines show what the value of torch's mean is worth there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._memory import peak_of
from benchmarks.timing import Times

LIMIT, PLAIN, OWN = "the matrix products alone", "linear, then cross_entropy", "F.linear_cross_entropy, chunks of 512"
HAND = "by hand, gradients in the forward pass, chunks of 512"
CCE = "cut-cross-entropy, compiled"
VARIANTS = (LIMIT, PLAIN, OWN, "F.linear_cross_entropy, automatic", HAND, CCE)


def run(bench: Bench) -> None:
    tokens, width, words = (8, 4, 50) if bench.tiny else (4096, 768, 50257)
    names, blank = list(VARIANTS), []
    if bench.tiny or bench.peer("cut_cross_entropy") is None:
        names.remove(CCE)
        blank.append(CCE)
    if not hasattr(F, "linear_cross_entropy"):
        missing = [name for name in names if name.startswith("F.")]
        names, blank = [name for name in names if name not in missing], blank + missing
        bench.absent["torch's own"] = f"torch {torch.__version__} has no F.linear_cross_entropy"
    times, peaks = {name: Times() for name in names}, dict.fromkeys(names, 0.0)
    # the compiled one is timed at its second call, in the one process that compiles it
    for repeat in range(1 if bench.tiny else 2):
        for name in names if repeat == 0 else [n for n in names if n != CCE]:
            settings = {"tokens": tokens, "width": width, "words": words, "device": bench.device}
            found = bench.apart(f"{__name__}:work", name=name, **settings)
            times[name].wall.append(found["seconds"])
            times[name].cpu.append(found["cpu"])
            peaks[name] = max(peaks[name], found["bytes"])
    title = f"{tokens} x {width} -> {words}"
    promised = [name for name in (OWN, HAND) if name in names]
    bench.keep(title, times, limit=PLAIN, blank=blank, targets=[Target(name, PLAIN, 1.0) for name in promised])
    mib = {name: peak / 2**20 for name, peak in peaks.items()}
    bench.figures(
        f"{title}: peak memory above weights and inputs",
        ["", "MiB at most"],
        list(mib.items()),
        targets=[(f"{name}: MiB", mib[name], "<=", 360.0) for name in promised],
    )
    if OWN in names and not bench.tiny:
        bfloat16(bench)


def work(name: str, tokens: int, width: int, words: int, device: str) -> dict[str, float]:
    """One variant; the second of two calls where something is compiled, else the first."""
    from time import process_time

    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=draw).to(device).requires_grad_()
    weight = (torch.randn(words, width, generator=draw) / width**0.5).to(device).requires_grad_()
    target = torch.randint(words, (tokens,), generator=draw).to(device)

    def call() -> None:
        variant(name, hidden, weight, target)
        hidden.grad = weight.grad = None

    if name == CCE:
        call()
    start = process_time()
    found = peak_of(call, device)
    return {**found, "cpu": process_time() - start}


def variant(name: str, hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    """Forward and backward."""
    if name == LIMIT:
        with torch.no_grad():
            # one after the other and into the same memory, in chunks: what no variant can do without
            for rows in hidden.split(512):
                logits = rows @ weight.T
                logits @ weight
                logits.T @ rows
        return
    if name == PLAIN:
        F.cross_entropy(hidden @ weight.T, target).backward()
    elif name == HAND:
        Fused.apply(hidden, weight, target, 512).backward()
    elif name == CCE:
        from cut_cross_entropy import linear_cross_entropy

        linear_cross_entropy(hidden, weight, target, impl="torch_compile").backward()
    else:
        chunk = {"batch_chunk_size": 512, "chunking_method": None} if "chunks" in name else {}
        F.linear_cross_entropy(hidden, weight, target, options=_options(**chunk)).backward()


def _options(**settings: object) -> object:
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    return LinearCrossEntropyOptions(**settings)


class Fused(torch.autograd.Function):
    """The mean cross entropy, its gradients made chunk by chunk in the forward pass.

    One buffer holds the logits of a chunk, in place their exponentials, and those less their sum at the target: the
    gradients but for a factor per row, which goes to the narrow side of each product.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, target: Tensor, chunk: int) -> Tensor:
        to_hidden, to_weight, total = torch.empty_like(hidden), torch.zeros_like(weight), hidden.new_zeros(())
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight))
        for rows, classes, slopes in zip(hidden.split(chunk), target.split(chunk), to_hidden.split(chunk)):
            at = torch.arange(len(rows), device=rows.device), classes
            values = torch.mm(rows, weight.T, out=buffer[: len(rows)])
            largest, picked = values.amax(1, keepdim=True), values[at]
            sums = values.sub_(largest).exp_().sum(1, keepdim=True)
            total += (sums.log() + largest).sum() - picked.sum()
            values[at] -= sums.squeeze(1)
            torch.mm(values, weight, out=slopes).div_(sums)
            to_weight.addmm_(values.T, rows / sums)
        ctx.save_for_backward(to_hidden, to_weight)
        return total / len(hidden)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        to_hidden, to_weight = ctx.saved_tensors
        gradient = gradient / len(to_hidden)
        return to_hidden.mul_(gradient), to_weight.mul_(gradient), None, None


def bfloat16(bench: Bench) -> None:
    """What torch's own gives for bfloat16 inputs, by its mean and by the mean of its losses."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(256, 64, generator=draw), torch.randn(8000, 64, generator=draw) / 8
    target = torch.randint(8000, (256,), generator=draw)
    half, wide = hidden.bfloat16(), weight.bfloat16()
    exact = F.cross_entropy(half.float() @ wide.float().T, target).item()
    mean = F.linear_cross_entropy(half, wide, target, options=_options()).item()
    losses = F.linear_cross_entropy(half, wide, target, reduction="none", options=_options()).float().mean().item()
    rows = [("exact, in float32", exact, 0.0)]
    rows += [("reduction='mean'", mean, abs(mean / exact - 1))]
    rows += [("reduction='none', then the mean in float32", losses, abs(losses / exact - 1))]
    bench.figures("torch's own on bfloat16 inputs, 256 x 64 -> 8000", ["", "loss", "relative error"], rows)
