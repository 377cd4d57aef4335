#!/usr/bin/env python3
"""What PyTorch reaches on this GPU with the shapes of gpu_bench, in the same call of perf/gpu_check.sh:

    attention   scaled_dot_product_attention by cuDNN, FlashAttention and the memory-efficient kernel
    linear      every matrix of the presets' layers, by F.linear (no rule about a row's bits)
    grouped     the experts of moe-61l's layer in one grouped product

    perf/peers/gpu_peers.py [--tiny] [--device cuda|cpu]

Lines for the table (perf/table_line.hpp) with the floor by PyTorch's own product of 8192^3 and copy. What
this PyTorch does not have is told and left out. Prints SKIPPED where there is no PyTorch or no device.
"""

import argparse
import sys
import time

PRESETS = {  # heads, head_dim, hidden, inner, dtype
    "moe-16l": (32, 128, 4096, 16384, "bfloat16"),
    "moe-61l": (128, 128, 7168, 2048, "bfloat16"),
    "moe-4l": (16, 512, 8192, 32768, "float16"),
}
ROWS = (4096, 512, 64, 8)


def skip(why):
    print(f"SKIPPED: {why}")
    sys.exit(77)


try:
    import torch
    import torch.nn.functional as F
except ImportError as missing:
    skip(f"no PyTorch here ({missing})")


def tell_missing(name, why):
    print(f"= NOT RUN|PyTorch {name}|-|-|-|{str(why).splitlines()[0][:120].replace('|', ' ')}", flush=True)


class Peers:
    def __init__(self, device, tiny):
        self.device, self.tiny = device, tiny
        self.repetitions = 2 if tiny else 10
        cube = 256 if tiny else 8192
        a, b = self.random(cube, cube), self.random(cube, cube)
        self.gemm_rate = 2 * cube**3 / self.seconds(lambda: torch.matmul(a, b.T))
        big = torch.randint(0, 127, (1 << (20 if tiny else 30),), dtype=torch.int8, device=device)
        to = torch.empty_like(big)
        self.copy_rate = 2 * big.numel() / self.seconds(lambda: to.copy_(big))
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        print(f"= PASSED|PyTorch ceilings|{self.gemm_rate / 1e12:.1f} TFLOP/s|-|-|copy "
              f"{self.copy_rate / 1e9:.1f} GB/s; {torch.__version__} on {name}", flush=True)

    def random(self, *shape, dtype="bfloat16"):
        return torch.randn(*shape, device=self.device, dtype=getattr(torch, dtype))

    def seconds(self, work):
        """Of one run, the mean of some in a row after two that warm up."""
        for _ in range(2):
            work()
        if self.device != "cuda":
            begin = time.perf_counter()
            for _ in range(self.repetitions):
                work()
            return (time.perf_counter() - begin) / self.repetitions
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(self.repetitions):
            work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e-3 / self.repetitions

    def measure(self, name, flops, bytes_moved, work, note=""):
        try:
            seconds = self.seconds(work)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            tell_missing(name, error)
            return
        floor = max(flops / self.gemm_rate, bytes_moved / self.copy_rate)
        print(f"= PASSED|PyTorch {name}|{seconds * 1e3:.4g} ms|{floor * 1e3:.4g} ms|{floor / seconds:.2f}|{note}",
              flush=True)

    def attention(self, preset):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        heads, width, _, _, dtype = PRESETS[preset]
        contexts = (128,) if self.tiny else (10000,)
        ways = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
                "efficient": SDPBackend.EFFICIENT_ATTENTION}
        if width > 256:  # more than the others take
            ways["math"] = SDPBackend.MATH
        for context in contexts:
            for phase in ("prefill", "decode"):
                sequences, rows = (1, context) if phase == "prefill" else (4 if self.tiny else 64, 1)
                q = self.random(sequences, heads, rows, width, dtype=dtype)
                k, v = (self.random(sequences, heads, context, width, dtype=dtype) for _ in range(2))
                keys = context * (context + 1) / 2 if phase == "prefill" else context
                flops = 4 * sequences * heads * width * keys
                moved = 2 * (2 * k.numel() + 2 * q.numel())
                for way, backend in ways.items():
                    def work(backend=backend, causal=phase == "prefill"):
                        with sdpa_kernel(backend):
                            F.scaled_dot_product_attention(q, k, v, is_causal=causal)
                    self.measure(f"attention/{preset}/{phase}/{context}/{way}", flops, moved, work)
                del q, k, v

    def linear(self, preset):
        heads, width, hidden, inner, dtype = PRESETS[preset]
        if self.tiny:
            heads, width, hidden, inner = 2, 16, 32, 64
        q = heads * width
        for name, (n, k) in {"qkv": (3 * q, hidden), "o": (hidden, q), "up": (inner, hidden),
                             "down": (hidden, inner)}.items():
            # Enough copies in turn that none is still in the cache.
            copies = 1 if self.tiny else 1 + (128 << 20) // (2 * n * k)
            weights = [self.random(n, k, dtype=dtype) for _ in range(copies)]
            for rows in ROWS[-1:] if self.tiny else ROWS:
                x, turn = self.random(rows, k, dtype=dtype), iter(range(1 << 30))
                self.measure(f"linear/{preset}/{name}/{rows}", 2 * rows * n * k, 2 * (n * k + rows * (n + k)),
                             lambda: F.linear(x, weights[next(turn) % copies]))

    def grouped(self):
        _, _, hidden, inner, dtype = PRESETS["moe-61l"]
        experts, rows = (4, 16) if self.tiny else (64, 128)
        if self.tiny:
            hidden, inner = 64, 32
        if not hasattr(torch, "_grouped_mm"):
            tell_missing("grouped/moe-61l", "this PyTorch has no _grouped_mm")
            return
        x = self.random(experts * rows, hidden, dtype=dtype)
        weights = self.random(experts, hidden, inner, dtype=dtype)
        ends = torch.arange(rows, experts * rows + 1, rows, device=self.device, dtype=torch.int32)
        self.measure("grouped/moe-61l/up", 2 * experts * rows * hidden * inner,
                     2 * (weights.numel() + x.numel() + experts * rows * inner),
                     lambda: torch._grouped_mm(x, weights, offs=ends), f"{experts} experts, {rows} rows each")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        skip("PyTorch sees no CUDA device")
    torch.manual_seed(1)
    with torch.no_grad():
        peers = Peers(arguments.device, arguments.tiny)
        for preset in PRESETS:
            for kind, measure in (("attention", peers.attention), ("linear", peers.linear)):
                try:
                    measure(preset)
                except torch.OutOfMemoryError as error:
                    tell_missing(f"{kind}/{preset}", error)
                if arguments.device == "cuda":
                    torch.cuda.empty_cache()
        peers.grouped()
    return 0


if __name__ == "__main__":
    sys.exit(main())
