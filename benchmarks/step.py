"""A training step of tljax against PyTorch's with the same architecture, side by side, as a table in Markdown.

    python benchmarks/step.py [--models=vit_s,resnet50,minilm] [--strategies=full,last,head,bitfit,lora]
        [--device=cpu|gpu] [--batch=16] [--dtype=float32|bfloat16] [--threads=2] [--rounds=7] [--compile=auto|off]

Needs benchmarks/requirements.txt. 224 px or 128 tokens, AdamW, random weights. PyTorch's frozen layers have
`requires_grad=False` and stand in eval mode; ResNet-50 is channels_last; bfloat16 is its autocast; of eager and
`torch.compile` the faster counts. Each side is a process of its own, and sleeps while another is measured: A B C A B C.
A row has medians, and half the range of the middle half in per cent of the median.

On the CPU each side has `--threads` threads on as many cores, and memory in huge pages, which `python -m tljax` asks
for by itself. A turn is two steps of which the second counts, as in training a step follows a step: a virtual machine
may take back the memory of a process that sleeps. On a GPU a turn is 40 steps of which 20 count, sent as training sends
them, without waiting for each; both sides compute float32 products in TF32, which is XLA's default there.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOKENS, CLASSES, RANK = 128, 10, 8
STEPS = {"cpu": 1, "gpu": 20}  # of a turn
NETWORKS = {"vit_s": "vit_small_patch16", "resnet50": "resnet50", "minilm": "minilm_l6"}
STRATEGIES = {
    "full": {"strategy": "full"},
    "last": {"strategy": "last_k"},
    "head": {"strategy": "linear_probe"},
    "bitfit": {"strategy": "bias_only"},
    "lora": {"strategy": "lora", "rank": RANK},
}
LAST = {"vit_s": 2, "resnet50": 3, "minilm": 2}  # groups; of ResNet-50, its last stage


def tljax_step(model: str, strategy: str, options: argparse.Namespace) -> Callable[[int], None]:
    """Takes so many steps of the program that `train` runs."""
    import jax
    import numpy as np

    from tljax.config import schema
    from tljax.config.schema import Experiment
    from tljax.core.resolve import Resolved
    from tljax.core.run import Run
    from tljax.data.preprocessing import Preprocessing
    from tljax.distributed import mesh
    from tljax.weights.catalog import Pretrained

    values = schema.default()
    values.backbone.name, values.steps = NETWORKS[model], 1000
    values.compute_dtype = options.dtype
    values.task.update(image_size=224, batch_size=options.batch)
    values.optim.update(weight_decay=0.01)
    values.tuning.update(STRATEGIES[strategy] | ({"k": LAST[model]} if strategy == "last" else {}))
    text = model == "minilm"
    row = Pretrained("", "", NETWORKS[model], "bert" if text else "", Preprocessing(), "none")
    classes = tuple(map(str, range(CLASSES)))
    length = TOKENS if text else 0
    run = Run(
        Experiment.from_config(values), Resolved(row, Preprocessing(), classes, 1000, 1000, "none", length=length)
    )
    random = np.random.default_rng(0)
    if text:
        ids = random.integers(1000, 30000, (options.batch, TOKENS)).astype(np.int32)
        x = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    else:
        x = random.integers(0, 256, (options.batch, 224, 224, 3)).astype(np.uint8)
    ones = np.ones(options.batch, np.float32)
    label = random.integers(0, CLASSES, options.batch).astype(np.int32)
    batch = mesh.put_batch({"input": x, "label": label, "mask": ones, "weight": ones}, run.mesh)
    state, program = run.init_state(), run.programs.train_step(run.phases[0])

    def step(times: int) -> None:
        nonlocal state
        for _ in range(times):
            state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))

    return step


def torch_step(model: str, strategy: str, compiled: bool, options: argparse.Namespace) -> Callable[[int], None]:
    """Takes so many steps as PyTorch's users write them."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = _torch_network(model)
    blocks = _torch_blocks(network, model)
    network.requires_grad_(strategy == "full")
    network.head.requires_grad_(True)
    if strategy == "last":
        for block in blocks[-LAST[model] :]:
            block.requires_grad_(True)
        if model == "vit_s":
            network.body.norm.requires_grad_(True)
    elif strategy == "bitfit":
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.requires_grad_(True)
    elif strategy == "lora":
        _torch_lora(blocks, model)
    network.eval()  # BatchNorm of what is frozen rests; there is no dropout
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and any(p.requires_grad for p in module.parameters()):
            module.train()
    if strategy == "lora":  # whose blocks train, so their BatchNorm does
        nn.ModuleList(blocks).train()
    size = options.batch
    x = torch.randint(1000, 30000, (size, TOKENS)) if model == "minilm" else torch.randn(size, 3, 224, 224)
    if model == "resnet50":
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    label = torch.randint(0, CLASSES, (size,))
    device = {"gpu": "cuda"}.get(options.device, options.device)
    network, x, label = network.to(device), x.to(device), label.to(device)
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    half = torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    program = torch.compile(network) if compiled else network

    def step(times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad(set_to_none=True)
            with half:
                loss = nn.functional.cross_entropy(program(x), label)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def _torch_network(model: str):
    import timm
    import torch
    from torch import nn
    from transformers import BertConfig, BertModel

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            if model == "minilm":
                sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
                rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
                self.body, width = BertModel(BertConfig(**sizes, **rates), add_pooling_layer=False), 384
            else:
                name = {"vit_s": "vit_small_patch16_224"}.get(model, model)
                self.body = timm.create_model(name, num_classes=0)
                width = self.body.num_features
            self.head = nn.Linear(width, CLASSES)

        def forward(self, x):
            if model != "minilm":
                return self.head(self.body(x))
            mask = torch.ones_like(x)
            hidden = self.body(input_ids=x, attention_mask=mask).last_hidden_state
            weights = mask[..., None].float()
            return self.head((hidden * weights).sum(1) / weights.sum(1))

    return Network()


def _torch_blocks(network, model: str) -> list:
    if model == "vit_s":
        return list(network.body.blocks)
    if model == "minilm":
        return list(network.body.encoder.layer)
    return [block for number in range(1, 5) for block in getattr(network.body, f"layer{number}")]


def _torch_lora(blocks: list, model: str) -> None:
    """Rank 8 on what tljax adapts: query, key and value, or the 1x1 convolutions of the blocks."""
    import torch
    from torch import nn

    class Lora(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            if isinstance(layer, nn.Conv2d):
                self.a = nn.Conv2d(layer.in_channels, RANK, 1, layer.stride, bias=False)
                self.b = nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
            else:
                self.a = nn.Linear(layer.in_features, RANK, bias=False)
                self.b = nn.Linear(RANK, layer.out_features, bias=False)
            with torch.no_grad():
                self.b.weight.zero_()

        def forward(self, x):
            return self.layer(x) + 2.0 * self.b(self.a(x))

    for block in blocks:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
                if name in ("qkv", "query", "key", "value") or pointwise:
                    setattr(parent, name, Lora(layer))


def work(side: str, model: str, strategy: str, options: argparse.Namespace) -> None:
    """A worker: makes its step, then takes a turn for each line that it reads, and answers with a step's seconds."""
    times = STEPS[options.device]
    if options.device == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    answers, sys.stdout = sys.stdout, sys.stderr
    start = time.perf_counter()
    if side == "tljax":
        step = tljax_step(model, strategy, options)
    else:
        import torch

        torch.set_num_threads(options.threads)
        step = torch_step(model, strategy, side == "compile", options)
    step(1)
    first = time.perf_counter() - start
    step(times)
    print(json.dumps({"first": first}), file=answers, flush=True)
    for _ in sys.stdin:
        step(times)
        start = time.perf_counter()
        step(times)
        seconds = (time.perf_counter() - start) / times
        peak = _peak(side, options.device)
        print(json.dumps({"seconds": seconds, "peak": peak}), file=answers, flush=True)


def _peak(side: str, device: str) -> int:
    """Bytes at the worst moment: of the process, or of the GPU's memory that it has used."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if side == "tljax":
        import jax

        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


class Worker:
    """A process that takes steps when it is told to."""

    def __init__(self, side: str, model: str, strategy: str, options: argparse.Namespace):
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a GPU is shared with the other sides
        paths = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        shared = (f"--{name}={getattr(options, name)}" for name in ("device", "batch", "dtype", "threads"))
        command = [sys.executable, __file__, "--worker", side, model, strategy, *shared]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.first = self._answer()["first"]
        self.seconds, self.peak = [], 0

    def step(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.peak = answer["peak"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker died: see above")
        return json.loads(line)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


def row(model: str, strategy: str, options: argparse.Namespace) -> str:
    sides = ["tljax", "eager"] + (["compile"] if options.compile == "auto" else [])
    # On a GPU all compile at once, which a CPU's cores would feel.
    with ThreadPoolExecutor(len(sides) if options.device == "gpu" else 1) as pool:
        workers = dict(zip(sides, pool.map(lambda side: Worker(side, model, strategy, options), sides), strict=True))
    for _ in range(options.rounds):
        for worker in workers.values():
            worker.step()
    ours = workers.pop("tljax")
    best = min(workers, key=lambda side: workers[side].median)
    theirs = workers[best]
    cells = [model, strategy, *(f"{worker.median:.3g} ±{worker.spread / 2:.1%}" for worker in (ours, theirs)), best]
    cells += [f"**{theirs.median / ours.median:.2f}**", f"{ours.peak / 1e9:.2f} / {theirs.peak / 1e9:.2f}"]
    cells += [f"{ours.first:.0f} / {theirs.first:.0f}"]
    for worker in (ours, *workers.values()):
        worker.close()
    return f"| {' | '.join(cells)} |"


def machine(options: argparse.Namespace) -> str:
    if options.device == "gpu":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {options.threads} thread(s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(NETWORKS))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--device", choices=tuple(STEPS), default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", choices=("auto", "off"), default="auto")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker, options)
        return
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "timm", "transformers"))
    print(
        f"{machine(options)}, batch {options.batch}, {options.dtype}, Python {platform.python_version()}, {versions}\n"
    )
    print("| model | strategy | tljax, s | PyTorch, s | its best | PyTorch ÷ tljax | peak, GB | first step, s |")
    print("|---|---|---|---|---|---|---|---|")
    for model in options.models.split(","):
        for strategy in options.strategies.split(","):
            print(row(model, strategy, options), flush=True)


if __name__ == "__main__":
    main()
