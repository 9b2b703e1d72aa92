// A GEMM with its epilogue for sm_75, sm_80, sm_86 and sm_89, D = activation(A * B + bias + residual), behind the same
// plain C entry points as gemm_sm90.cuh, on CUTLASS 2.x.
//
// A is row-major (M by K), B is column-major (K by N, a weight as torch keeps it), C and D are row-major (M by N), all
// packed; the bias is a vector of N floats that begins at a multiple of 16 bytes. Without a bias, or without a residual,
// its pointer is null. Tiles go along M first, eight columns of them side by side where there are as many.
#pragma once

#include <cuda_runtime.h>

#include "cutlass/cutlass.h"
#include "cutlass/device_kernel.h"
#include "cutlass/epilogue/thread/activation.h"
#include "cutlass/epilogue/thread/linear_combination_bias_elementwise.h"
#include "cutlass/gemm/device/gemm_universal_with_broadcast.h"

#include "abi.h"
#include "activations.h"

namespace autotune {

template <class Element, class Output, template <class> class Activation, class Arch, class Tile, class Warp,
          class Instruction, int kStages, int kAlignment, int kOutputAlignment>
struct GemmMultistage {
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  using Epilogue = cutlass::epilogue::thread::LinearCombinationBiasElementwise<
      Output, float, float, Output, Output, kOutputAlignment, Activation<float>, cutlass::plus<float>, false, float>;
  using Device = cutlass::gemm::device::GemmUniversalWithBroadcast<
      Element, RowMajor, Element, ColumnMajor, Output, RowMajor, float, cutlass::arch::OpClassTensorOp, Arch, Tile, Warp,
      Instruction, Epilogue, cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, kStages, kAlignment,
      kAlignment, cutlass::arch::OpMultiplyAdd>;
  using Kernel = typename Device::GemmKernel;

  static typename Device::Arguments arguments(Operands const& on, Launch const& at) {
    float const beta = on.residual != nullptr ? 1.0f : 0.0f;
    return {cutlass::gemm::GemmUniversalMode::kGemm,
            {at.m, at.n, at.k},
            1,
            {1.0f, beta},
            on.a,
            on.b,
            on.residual,
            on.d,
            const_cast<float*>(on.bias),
            nullptr,
            0, 0, 0, 0, 0, 0,
            at.k, at.k, at.n, at.n, 0, 0};
  }

  // Zero, or one of cutlass::Status; the launch is in the stream when this returns.
  static int run(Operands const& on, Launch const& at, int, void* workspace, cudaStream_t stream) {
    auto const given = arguments(on, at);
    if (auto const status = Device::can_implement(given); status != cutlass::Status::kSuccess) {
      return static_cast<int>(status);
    }
    Device device;
    if (auto const status = device.initialize(given, workspace, stream); status != cutlass::Status::kSuccess) {
      return static_cast<int>(status);
    }
    return static_cast<int>(device.run(stream));
  }

  static size_t workspace_bytes(Launch const& at, int) { return Device::get_workspace_size(arguments({}, at)); }

  static int made(Made* told) {
    cudaFuncAttributes found;
    if (auto const error = cudaFuncGetAttributes(&found, cutlass::Kernel2<Kernel>); error != cudaSuccess) {
      return static_cast<int>(error);
    }
    *told = {found.numRegs, static_cast<int>(found.localSizeBytes),
             static_cast<int>(sizeof(typename Kernel::SharedStorage)), kStages};
    return 0;
  }
};

}  // namespace autotune

// One kernel under a name of its own; the rest are the arguments of GemmMultistage.
#define AUTOTUNE_GEMM(NAME, ...)                                                                                       \
  using NAME##_kernel = autotune::GemmMultistage<__VA_ARGS__>;                                                         \
  extern "C" int NAME##_run(autotune::Operands const* on, autotune::Launch const* at, int multiprocessors,             \
                            void* workspace, void* stream) {                                                           \
    return NAME##_kernel::run(*on, *at, multiprocessors, workspace, static_cast<cudaStream_t>(stream));                \
  }                                                                                                                    \
  extern "C" size_t NAME##_workspace_bytes(autotune::Launch const* at, int multiprocessors) {                          \
    return NAME##_kernel::workspace_bytes(*at, multiprocessors);                                                       \
  }                                                                                                                    \
  extern "C" int NAME##_made(autotune::Made* told) { return NAME##_kernel::made(told); }
