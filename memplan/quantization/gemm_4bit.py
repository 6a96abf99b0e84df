"""Which kernel `bitsandbytes::gemm_4bit` takes on CUDA: the fused one, or dequantize and `F.linear`.

The choice decides whether a forward through a 4-bit layer allocates the whole weight in the compute dtype. It depends
on the rows of the input (M = batch x sequence), the weight [N, K], the dtype and the GPU. The thresholds are
bitsandbytes' own, measured by its authors an architecture at a time, and are restated here from
bitsandbytes/backends/cuda/ops.py, `gemm_4bit` and `_gemm_4bit_use_custom_cuda` (0.50.2; MIT licence).

Past M = 1536 the answer is always "dequantize", so most training steps need none of this.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.dtypes import DType

ALWAYS_FUSED_ROWS = 4  # _GEMM_4BIT_CUSTOM_FLOOR_M
MAX_FUSED_ROWS = 1536  # _gemm_4bit_custom_max_m on CUDA

_TILE_COLUMNS = 64  # output columns of one thread block: n_blocks = (N + 63) // 64
_SMALL_WEIGHT_ELEMENTS = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the dispatch reads from the device.

    Attributes:
        compute_capability: (major, minor).
        multiprocessors: streaming multiprocessors (`multi_processor_count`).
    """

    compute_capability: tuple[int, int]
    multiprocessors: int


def uses_fused_kernel(gpu: Gpu | None, dtype: DType, rows: int, shape: tuple[int, int], blocksize: int = 64) -> bool:
    """Whether the forward multiplies with the packed weight, without a dequantized copy.

    Args:
        gpu: the CUDA device; None assumes the kernel that needs more, where the device decides.
        dtype: of the input, i.e. the compute dtype.
        rows: of the input, batch x sequence.
        shape: of the weight, [out_features, in_features].
        blocksize: elements that share one absmax.
    """
    n, k = shape
    if k % blocksize:
        return False
    if rows <= ALWAYS_FUSED_ROWS:
        return True
    if gpu is None or rows > MAX_FUSED_ROWS:
        return False
    major, minor = gpu.compute_capability
    no_tensor_core_kernel = dtype is DType.FLOAT32 or (major, minor) < (7, 5)
    if no_tensor_core_kernel or ((major, minor) == (7, 5) and dtype is not DType.FLOAT16):
        return rows < 8
    # Beyond sm75 the source tests major 7 for "minor < 5 or not fp16" only, so nothing else of major 7 remains.
    if (major, minor) == (8, 7) or major == 11:  # no calibration data
        return False
    grid = _Grid(n, k, -(-n // _TILE_COLUMNS), gpu.multiprocessors)
    if major == 10:
        return rows <= _max_rows_sm100(grid)
    if n * k < _SMALL_WEIGHT_ELEMENTS:
        return rows <= _max_rows_small_weight(grid, gpu.compute_capability, rows)
    if rows > 512:
        return False
    if rows < 8:
        return not _dequantizes_below_8_rows(grid, gpu.compute_capability, rows)
    return rows <= _max_rows(grid, gpu.compute_capability)


@dataclass(frozen=True, slots=True)
class _Grid:
    """A weight [n, k] as a launch: thread blocks over the multiprocessors. One wave is one block on each."""

    n: int
    k: int
    blocks: int
    multiprocessors: int

    def at_least(self, numerator: int, denominator: int = 1) -> bool:
        """Whether the launch fills at least numerator/denominator waves."""
        return self.blocks * denominator >= self.multiprocessors * numerator

    @property
    def half_wave(self) -> bool:
        # The source floors the half (`num_sms // 2`), which differs for an odd number of multiprocessors.
        return self.blocks >= self.multiprocessors // 2

    @property
    def tall(self) -> bool:
        return self.k > self.n * 2


def _max_rows_sm100(grid: _Grid) -> int:
    if grid.at_least(3):
        return 32
    return 8 if grid.at_least(1) and grid.k < grid.n else 0


def _max_rows_small_weight(grid: _Grid, capability: tuple[int, int], rows: int) -> int:
    sm75, sm80, high_bandwidth = capability == (7, 5), capability == (8, 0), _high_bandwidth(capability)
    if grid.k * 2 < grid.n:
        if high_bandwidth:
            low_occupancy = not grid.at_least(1, 3)
            if sm80:
                return 1536 if low_occupancy else 512
            return 512 if low_occupancy else 320
        if sm75:
            if grid.at_least(3):
                return 320
            return 64 if grid.k >= 1024 else 96 if grid.k >= 704 else 320
        deep = grid.blocks * grid.k > grid.multiprocessors * 320
        return 192 if not grid.at_least(1) and deep else 320
    quarter_wave = grid.blocks * 4 <= grid.multiprocessors
    if sm80 and quarter_wave:
        if grid.k < grid.n:
            return 384
        return 32 if grid.blocks * 8 <= grid.multiprocessors else 128
    if sm75 and not grid.at_least(1) and rows > 8:
        return 64
    if quarter_wave:
        return 32 if grid.k < grid.n or high_bandwidth else 23
    return 16 if grid.blocks * 2 <= grid.multiprocessors else 0


def _dequantizes_below_8_rows(grid: _Grid, capability: tuple[int, int], rows: int) -> bool:
    sm90 = capability[0] == 9
    if not _high_bandwidth(capability) or rows < 6 or grid.blocks < (36 if sm90 else 48):
        return False
    three_quarters, three_fifths = grid.at_least(3, 4), grid.at_least(3, 5)
    if grid.k > grid.n:
        return not three_quarters
    if grid.k == grid.n:
        return three_fifths and not three_quarters if sm90 else not three_fifths
    return False


def _max_rows(grid: _Grid, capability: tuple[int, int]) -> int:
    """Largest M of the fused kernel for a weight of 4 Mi elements or more, M in [8, 512]; 0 for none."""
    if capability == (7, 5):
        if grid.at_least(3):
            return 128 if grid.k < grid.n else 64
        return 64 if grid.half_wave else 32
    if capability == (8, 0):
        return _max_rows_sm80(grid)
    if capability == (8, 6):
        return 128 if grid.at_least(1) else 64 if grid.half_wave else 16
    if capability[0] == 9:
        return _max_rows_sm90(grid)
    if capability == (12, 1) and grid.at_least(1):
        return 256
    if capability == (12, 0):
        return _max_rows_sm120(grid)
    return _max_rows_default(grid)


def _max_rows_sm80(grid: _Grid) -> int:
    if grid.at_least(3):
        return 128
    if grid.at_least(1):
        return 64 if grid.k < grid.n else 32
    if grid.k >= grid.n * 3 and grid.blocks * 4 > grid.multiprocessors:
        return 0
    if grid.k == grid.n and grid.blocks >= 48 and not grid.at_least(3, 5):
        return 0
    if not grid.at_least(1, 2):
        if grid.k <= grid.n:
            return 128
        if grid.at_least(1, 3):
            return 0
    return 128 if grid.half_wave and grid.k < grid.n else 16


def _max_rows_sm90(grid: _Grid) -> int:
    for waves, max_rows in ((3, 64), (2, 48), (1, 32)):
        if grid.at_least(waves):
            return max_rows
    if not grid.half_wave:
        return 0
    return 0 if grid.k >= grid.n and not grid.at_least(3, 4) else 16


def _max_rows_sm120(grid: _Grid) -> int:
    if grid.at_least(3):
        return 256
    if grid.at_least(2):
        return 128
    if grid.at_least(4, 5):
        return 96 if grid.k >= grid.n else 64
    if grid.half_wave:
        return 64 if grid.k * 2 >= grid.n and grid.blocks >= 128 else 8
    return 16 if grid.tall and grid.blocks > 64 else 8


def _max_rows_default(grid: _Grid) -> int:
    """sm89, sm121 below one wave, and architectures that bitsandbytes has not calibrated."""
    if grid.at_least(3):
        return 256
    if grid.at_least(2):
        return 128
    if grid.at_least(4, 5):
        if grid.tall or grid.blocks >= 200:
            return 128
        if grid.k >= grid.n:
            return 128 if grid.multiprocessors >= 60 else 32
        return 64
    if grid.half_wave:
        return 64 if grid.tall else 8 if grid.blocks >= 64 else 32
    if grid.k > grid.n and grid.blocks <= 48:
        return 12 if grid.k >= grid.n * 3 else 10
    return 16 if grid.tall or grid.blocks < 48 else 8


def _high_bandwidth(capability: tuple[int, int]) -> bool:
    return capability == (8, 0) or capability[0] == 9
