// A GEMM with its epilogue for sm_90a, D = activation(A * B + bias + residual), behind plain C entry points.
//
// A is row-major (M by K), B is column-major (K by N, a weight as torch keeps it), C and D are row-major (M by N), all
// packed; the bias is a vector of N floats. Without a bias, or without a residual, its pointer is null. A kernel's binary
// depends on none of M, N and K.
#pragma once

// A launch may begin while the one before it in the stream still works, where the kernel itself waits for that one.
// With CUTLASS's stream-K scheduler such a kernel does not compile: gemm_sm90_stream_k.cuh does without.
#ifndef AUTOTUNE_LAUNCHES_IN_TURN
#define CUTLASS_ENABLE_GDC_FOR_SM90 1
#endif

#include <cuda_runtime.h>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/operations.hpp"
#include "cutlass/epilogue/thread/activation.h"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"

#include "abi.h"
#include "activations.h"

namespace autotune {

template <class Element, class Output, bool kResidual, template <class> class Activation, class Tile, class Cluster,
          class Schedule, class EpilogueSchedule, class Scheduler>
struct GemmSm90 {
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  using Residual = std::conditional_t<kResidual, Output, void>;
  static constexpr int kAlignment = 16 / sizeof(Element);
  static constexpr int kOutputAlignment = 16 / sizeof(Output);
  static constexpr bool kStreamK = cute::is_same_v<Scheduler, cutlass::gemm::StreamKScheduler>;
#ifdef AUTOTUNE_LAUNCHES_IN_TURN
  static constexpr bool kMayBeginEarly = false;
#else
  static constexpr bool kMayBeginEarly = true;
#endif

  using Fusion = cutlass::epilogue::fusion::LinCombPerColBiasEltAct<Activation, Output, float, float, Output>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Residual, RowMajor, kOutputAlignment, Output,
      RowMajor, kOutputAlignment, EpilogueSchedule, Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowMajor, kAlignment, Element, ColumnMajor,
      kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      Schedule>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue, Scheduler>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static typename Device::Arguments arguments(Operands const& on, Launch const& at, int multiprocessors) {
    typename Device::Arguments given{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {at.m, at.n, at.k, 1},
        {static_cast<Element const*>(on.a), packed<typename Kernel::StrideA>(at.m, at.k),
         static_cast<Element const*>(on.b), packed<typename Kernel::StrideB>(at.n, at.k)},
        {{},
         static_cast<typename Kernel::ElementC const*>(on.residual),
         packed<typename Kernel::StrideC>(at.m, at.n),
         static_cast<Output*>(on.d),
         packed<typename Kernel::StrideD>(at.m, at.n)}};
    given.epilogue.thread.alpha = 1.0f;
    given.epilogue.thread.beta = kResidual && on.residual != nullptr ? 1.0f : 0.0f;
    given.epilogue.thread.bias_ptr = on.bias;
    given.hw_info.sm_count = multiprocessors;
    using Raster = decltype(given.scheduler.raster_order);
    given.scheduler.max_swizzle_size = at.swizzle;
    given.scheduler.raster_order = at.raster == 1 ? Raster::AlongM : at.raster == 2 ? Raster::AlongN : Raster::Heuristic;
    if constexpr (kStreamK) {
      using Parameters = cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90StreamKParams;
      given.scheduler.splits = at.splits;
      given.scheduler.decomposition_mode = static_cast<typename Parameters::DecompositionMode>(at.decomposition);
      given.scheduler.reduction_mode = static_cast<typename Parameters::ReductionMode>(at.reduction);
    }
    return given;
  }

  // Zero, or one of cutlass::Status; the launch is in the stream when this returns.
  static int run(Operands const& on, Launch const& at, int multiprocessors, void* workspace, cudaStream_t stream) {
    auto const given = arguments(on, at, multiprocessors);
    if (auto const status = Device::can_implement(given); status != cutlass::Status::kSuccess) {
      return static_cast<int>(status);
    }
    Device device;
    if (auto const status = device.initialize(given, workspace, stream); status != cutlass::Status::kSuccess) {
      return static_cast<int>(status);
    }
    return static_cast<int>(device.run(stream, nullptr, kMayBeginEarly && at.early != 0));
  }

  static size_t workspace_bytes(Launch const& at, int multiprocessors) {
    return Device::get_workspace_size(arguments({}, at, multiprocessors));
  }

  static int made(Made* told) {
    cudaFuncAttributes found;
    if (auto const error = cudaFuncGetAttributes(&found, cutlass::device_kernel<Kernel>); error != cudaSuccess) {
      return static_cast<int>(error);
    }
    *told = {found.numRegs, static_cast<int>(found.localSizeBytes), static_cast<int>(Kernel::SharedStorageSize),
             static_cast<int>(Mainloop::DispatchPolicy::Stages)};
    return 0;
  }

 private:
  template <class Stride>
  static Stride packed(int rows, int columns) {
    return cutlass::make_cute_packed_stride(Stride{}, cute::make_shape(rows, columns, 1));
  }
};

}  // namespace autotune

// One kernel under a name of its own; the rest are the arguments of GemmSm90.
#define AUTOTUNE_GEMM(NAME, ...)                                                                                       \
  using NAME##_kernel = autotune::GemmSm90<__VA_ARGS__>;                                                               \
  extern "C" int NAME##_run(autotune::Operands const* on, autotune::Launch const* at, int multiprocessors,             \
                            void* workspace, void* stream) {                                                           \
    return NAME##_kernel::run(*on, *at, multiprocessors, workspace, static_cast<cudaStream_t>(stream));                \
  }                                                                                                                    \
  extern "C" size_t NAME##_workspace_bytes(autotune::Launch const* at, int multiprocessors) {                          \
    return NAME##_kernel::workspace_bytes(*at, multiprocessors);                                                       \
  }                                                                                                                    \
  extern "C" int NAME##_made(autotune::Made* told) { return NAME##_kernel::made(told); }
