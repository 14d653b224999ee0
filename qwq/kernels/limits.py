"""What this machine can do at most, measured: the denominators of utilisation and of achieved bandwidth."""

import time

import torch

from qwq.kernels.linear import linear


def _best_seconds(call, seconds: float, device: str) -> float:
    """Shortest of the runs that fit in `seconds` (at least three), after one to warm up: a limit is not a median."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_gflop_s(device: str = "cpu", dtype: torch.dtype = torch.float32, seconds: float = 0.5) -> float:
    """The fastest square matrix product of the library that the model itself uses, in GFLOP/s."""
    size = 1024 if device == "cpu" else 8192
    a, b = torch.randn(size, size, dtype=dtype, device=device), torch.randn(size, size, dtype=dtype, device=device)
    with torch.no_grad():
        return 2 * size**3 / _best_seconds(lambda: linear(a, b), seconds, device) / 1e9


def read_gb_s(device: str = "cpu", seconds: float = 0.5) -> float:
    """Speed of reading memory far larger than any cache, in GB/s."""
    data = torch.ones(64 * 2**20, dtype=torch.float32, device=device)
    return data.nbytes / _best_seconds(data.sum, seconds, device) / 1e9
