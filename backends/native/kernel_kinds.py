"""The kinds of kernels of the native backend, as the core compares and estimates them."""

from autotune.backend import KernelKind
from autotune.backends.native import cublaslt, library
from autotune.search_spaces import cluster_gemm, cutlass_gemm, hopper_gemm, triton_gemm

CUTLASS_S = 50.0
"""nvcc 13.0 took 52 s for a CUTLASS kernel on a busy core, in a study on 16 cores 40 s; for one of ours 4 to 5 s."""

KERNEL_KINDS = (
    KernelKind(name=hopper_gemm.NAME, fixed_epilogue=False, one_tile_per_block=True),
    KernelKind(name=cutlass_gemm.NAME, compile_s=CUTLASS_S),
    # Fitted to times on an H200, see autotune.kernels.cost: neither uses the instructions of sm_90a.
    KernelKind(name=cluster_gemm.NAME, fixed_epilogue=False, tensor_rate_share=0.17),
    KernelKind(name=triton_gemm.NAME, tensor_rate_share=0.62),
    KernelKind(name=cublaslt.NAME, calls_library=True),
    KernelKind(name=library.NAME, calls_library=True),
)
