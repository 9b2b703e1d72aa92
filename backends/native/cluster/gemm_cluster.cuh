// A GEMM with its epilogue for few rows, D = activation(A * B + bias + residual), whose k dimension is shared out among
// the blocks of a thread block cluster: they add up their parts through each other's shared memory, in their order, so
// that one launch does everything and gives the same bits each time.
//
// A is row-major (M by K), B is column-major (K by N, a weight as torch keeps it), D and the residual are row-major (M
// by N), all packed. Rows of A and B are multiples of 16 bytes. Accumulators are fp32. Without a bias, or without a
// residual, its pointer is null. With a window the rows of A are read from images in channels-last memory, of which a
// place outside holds zeros: a convolution. For sm_80 and later; clusters of more than one block from sm_90 on.
#pragma once

#include <cstdint>

#include "instructions.cuh"

namespace autotune {

// What passes between Python and a compiled kernel: kernel.py has the same structures. `activation`: 0 none, 1 ReLU, 2
// GELU with erf, 3 GELU with tanh, 4 SiLU.
struct Order {
  void const* a;
  void const* b;
  float const* bias;
  void const* residual;
  void* d;
  int m, n, k;
  int activation;
  // Of a window; k goes over the rows of its kernel, then the columns, then the channels, whose number is a multiple of 8.
  int height, width, channels;
  int kernel_w;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int places_h, places_w;
};

// What the compiler made of a kernel, in bytes but for the registers of a thread.
struct Made {
  int registers, spilled, shared;
};

constexpr int kSharedWithoutAsking = 48 * 1024;
constexpr int kVector = 8;  // elements of 16 bytes

__device__ __forceinline__ float as_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float as_float(float value) { return value; }

template <class Output>
__device__ __forceinline__ Output rounded(float value);
template <>
__device__ __forceinline__ __half rounded<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }
template <>
__device__ __forceinline__ float rounded<float>(float value) { return value; }

__device__ __forceinline__ float activated(float x, int activation) {
  switch (activation) {
    case 1:
      return x < 0.0f ? 0.0f : x;  // NaN stays
    case 2:
      return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case 3:  // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
      return x / (1.0f + __expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case 4:
      return x / (1.0f + __expf(-x));
    default:
      return x;
  }
}

// A tile of kM by kN results, kK deep in each of kStages steps that are under way; kWarpsM by kWarpsN warps share it.
template <class Element, class Output, bool kWindow, int kM, int kN, int kK, int kWarpsM, int kWarpsN, int kStages>
struct GemmCluster {
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kTilesM = kWarpM / 16, kTilesN = kWarpN / 8;
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0 && kK % 16 == 0 && kStages >= 2, "not a tile of mma.m16n8k16");

  static constexpr int kChunks = kK / kVector;  // of 16 bytes, in a row of a tile
  static constexpr int kRowsAtOnce = kThreads / kChunks;
  static constexpr int kStageBytes = (kM + kN) * kK * 2;
  static constexpr int kPitch = kN + 4;  // floats from one row of the sums to the next
  static constexpr int kSumsBytes = kM * kPitch * 4;
  static constexpr int kShared = kStages * kStageBytes > kSumsBytes ? kStages * kStageBytes : kSumsBytes;
  static_assert(kThreads % kChunks == 0 && (kChunks == 4 || kChunks % 8 == 0), "rows of 64, 128 or more bytes");

  // Bytes from the beginning of a tile; eight rows of one column of chunks lie in different banks.
  static __device__ __forceinline__ int place(int row, int chunk) {
    int const turned = kChunks == 4 ? chunk ^ ((row >> 1) & 3) : chunk ^ (row & 7);
    return (row * kChunks + turned) * 16;
  }

  template <int kRows>
  static __device__ __forceinline__ void copy_tile(uint32_t to, Element const* from, int first_row, int rows, int depth,
                                                   int k) {
    int const chunk = threadIdx.x % kChunks;
    int const at = depth + chunk * kVector;
#pragma unroll
    for (int pass = 0; pass < (kRows + kRowsAtOnce - 1) / kRowsAtOnce; ++pass) {
      int const row = pass * kRowsAtOnce + threadIdx.x / kChunks;
      if (kRows % kRowsAtOnce != 0 && row >= kRows) break;
      bool const there = first_row + row < rows && at < k;
      // What is not there is not read, but its address should be one of the operand's all the same.
      Element const* source = there ? from + static_cast<int64_t>(first_row + row) * k + at : from;
      copy_ahead(to + place(row, chunk), source, there);
    }
  }

  // Where the rows of a thread's chunks begin: the image, and the upper left place under the kernel.
  struct Corner {
    int64_t image;
    int y, x;
  };
  static constexpr int kPasses = (kM + kRowsAtOnce - 1) / kRowsAtOnce;

  static __device__ __forceinline__ void find_corners(Corner (&corners)[kPasses], Order const& order, int first_row) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      int const row = first_row + pass * kRowsAtOnce + threadIdx.x / kChunks;
      int const image = row / (order.places_h * order.places_w), place = row % (order.places_h * order.places_w);
      corners[pass] = {static_cast<int64_t>(image) * order.height * order.width * order.channels,
                       place / order.places_w * order.stride_h - order.padding_h,
                       place % order.places_w * order.stride_w - order.padding_w};
    }
  }

  static __device__ __forceinline__ void copy_window(uint32_t to, Element const* from, Order const& order,
                                                     Corner const (&corners)[kPasses], int first_row, int depth) {
    int const chunk = threadIdx.x % kChunks;
    int const at = depth + chunk * kVector;
    int const tap = at / order.channels, channel = at % order.channels;
    int const down = tap / order.kernel_w * order.dilation_h, right = tap % order.kernel_w * order.dilation_w;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      int const row = pass * kRowsAtOnce + threadIdx.x / kChunks;
      if (kM % kRowsAtOnce != 0 && row >= kM) break;
      int const y = corners[pass].y + down, x = corners[pass].x + right;
      bool const there = first_row + row < order.m && at < order.k && y >= 0 && y < order.height && x >= 0 &&
                         x < order.width;
      int64_t const pixel = static_cast<int64_t>(y) * order.width + x;
      Element const* source = there ? from + corners[pass].image + pixel * order.channels + channel : from;
      copy_ahead(to + place(row, chunk), source, there);
    }
  }

  static __device__ __forceinline__ void kernel(Order const& order) {
    unsigned char* const shared = shared_memory();
    auto const* a = static_cast<Element const*>(order.a);
    auto const* b = static_cast<Element const*>(order.b);
    int const splits = gridDim.z, split = blockIdx.z;
    int const first_m = blockIdx.x * kM, first_n = blockIdx.y * kN;
    int const all_steps = (order.k + kK - 1) / kK, share = (all_steps + splits - 1) / splits;
    int const first_step = split * share;
    int const steps = max(0, min(share, all_steps - first_step));
    int const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int const warp_m = (warp / kWarpsN) * kWarpM, warp_n = (warp % kWarpsN) * kWarpN;
    uint32_t const base = shared_address(shared);

    Corner corners[kPasses];
    if constexpr (kWindow) find_corners(corners, order, first_m);
    auto fetch = [&](int step) {
      uint32_t const stage = base + (step % kStages) * kStageBytes;
      int const depth = (first_step + step) * kK;
      if constexpr (kWindow) {
        copy_window(stage, a, order, corners, first_m, depth);
      } else {
        copy_tile<kM>(stage, a, first_m, order.m, depth, order.k);
      }
      copy_tile<kN>(stage + kM * kK * 2, b, first_n, order.n, depth, order.k);
    };

    float sums[kTilesM][kTilesN][4] = {};
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) {
      if (step < steps) fetch(step);
      commit();
    }
    for (int step = 0; step < steps; ++step) {
      wait_for_all_but<kStages - 2>();
      __syncthreads();  // the stage is there for all threads, and all have left the one that is fetched next
      if (step + kStages - 1 < steps) fetch(step + kStages - 1);
      commit();
      uint32_t const tile_a = base + (step % kStages) * kStageBytes, tile_b = tile_a + kM * kK * 2;
#pragma unroll
      for (int inner = 0; inner < kK / 16; ++inner) {
        uint32_t left[kTilesM][4], right[kTilesN / 2][4];
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
          load_matrices(left[i], tile_a + place(warp_m + i * 16 + lane % 16, inner * 2 + lane / 16));
        }
#pragma unroll
        for (int j = 0; j < kTilesN / 2; ++j) {
          int const column = warp_n + j * 16 + (lane / 16) * 8 + lane % 8;
          load_matrices(right[j], tile_b + place(column, inner * 2 + (lane / 8) % 2));
        }
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
          for (int j = 0; j < kTilesN; ++j) {
            multiply<Element>(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
          }
        }
      }
    }
    wait_for_all_but<0>();
    __syncthreads();  // the sums take the place of the operands

    auto* own = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
        float* const to = own + (warp_m + i * 16 + lane / 4) * kPitch + warp_n + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(to) = make_float2(sums[i][j][0], sums[i][j][1]);
        *reinterpret_cast<float2*>(to + 8 * kPitch) = make_float2(sums[i][j][2], sums[i][j][3]);
      }
    }
    if (splits == 1) {
      __syncthreads();
      for (int item = threadIdx.x; item < kM * kN / kVector; item += kThreads) {
        int const row = item / (kN / kVector), column = item % (kN / kVector) * kVector;
        float total[kVector];
        read(total, own + row * kPitch + column);
        finish(order, first_m + row, first_n + column, total);
      }
      return;
    }
    Cluster const cluster;
    cluster.sync();
    for (int item = split * kThreads + threadIdx.x; item < kM * kN / kVector; item += splits * kThreads) {
      int const row = item / (kN / kVector), column = item % (kN / kVector) * kVector;
      float total[kVector] = {};
      for (int other = 0; other < splits; ++other) {
        float part[kVector];
        read(part, cluster.of(own, other) + row * kPitch + column);
#pragma unroll
        for (int i = 0; i < kVector; ++i) total[i] += part[i];
      }
      finish(order, first_m + row, first_n + column, total);
    }
    cluster.sync();  // nobody leaves while its sums are being read
  }

  static __device__ __forceinline__ void read(float (&to)[kVector], float const* from) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      float4 const four = *reinterpret_cast<float4 const*>(from + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  }

  static __device__ __forceinline__ void finish(Order const& order, int row, int column, float (&total)[kVector]) {
    if (row >= order.m || column >= order.n) return;
    int64_t const at = static_cast<int64_t>(row) * order.n + column;
    auto* const d = static_cast<Output*>(order.d) + at;
    auto const* const residual = order.residual ? static_cast<Output const*>(order.residual) + at : nullptr;
    bool const whole = order.n % kVector == 0;
    alignas(16) Output kept[kVector];
    if (residual != nullptr && whole) {
#pragma unroll
      for (int byte = 0; byte < kVector * int(sizeof(Output)); byte += 16) {
        *reinterpret_cast<uint4*>(reinterpret_cast<char*>(kept) + byte) =
            *reinterpret_cast<uint4 const*>(reinterpret_cast<char const*>(residual) + byte);
      }
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      bool const inside = whole || column + i < order.n;
      float value = total[i];
      if (order.bias != nullptr && inside) value += order.bias[column + i];
      if (residual != nullptr && inside) value += as_float(whole ? kept[i] : residual[i]);
      kept[i] = rounded<Output>(activated(value, order.activation));
      if (!whole && inside) d[i] = kept[i];
    }
    if (whole) {
#pragma unroll
      for (int byte = 0; byte < kVector * int(sizeof(Output)); byte += 16) {
        *reinterpret_cast<uint4*>(reinterpret_cast<char*>(d) + byte) =
            *reinterpret_cast<uint4 const*>(reinterpret_cast<char const*>(kept) + byte);
      }
    }
  }
};

template <class Gemm>
__global__ void __launch_bounds__(Gemm::kThreads) gemm_cluster(__grid_constant__ Order const order) {
  Gemm::kernel(order);
}

// Zero, or one of cudaError_t; the launch is in the stream when this returns.
template <class Gemm>
int launch(Order const& order, int tile_m, int tile_n, int splits, cudaStream_t stream) {
  auto const kernel = gemm_cluster<Gemm>;
  if (Gemm::kShared > kSharedWithoutAsking) {
    auto const set = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Gemm::kShared);
    if (set != cudaSuccess) return static_cast<int>(set);
  }
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3((order.m + tile_m - 1) / tile_m, (order.n + tile_n - 1) / tile_n, splits);
  how.blockDim = dim3(Gemm::kThreads);
  how.dynamicSmemBytes = Gemm::kShared;
  how.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = 1;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = splits;
  how.attrs = &cluster;
  how.numAttrs = splits > 1 ? 1 : 0;
  return static_cast<int>(cudaLaunchKernelEx(&how, kernel, order));
}

template <class Gemm>
int made(Made* told) {
  cudaFuncAttributes found;
  if (auto const error = cudaFuncGetAttributes(&found, gemm_cluster<Gemm>); error != cudaSuccess) {
    return static_cast<int>(error);
  }
  *told = {found.numRegs, static_cast<int>(found.localSizeBytes), Gemm::kShared};
  return 0;
}

}  // namespace autotune

// One kernel under a name of its own; the arguments are those of GemmCluster.
#define AUTOTUNE_GEMM(NAME, ELEMENT, OUTPUT, WINDOW, M, N, ...)                                       \
  using NAME##_kernel = autotune::GemmCluster<ELEMENT, OUTPUT, WINDOW, M, N, __VA_ARGS__>;            \
  extern "C" int NAME##_run(autotune::Order const* order, int splits, void* stream) {                 \
    return autotune::launch<NAME##_kernel>(*order, M, N, splits, static_cast<cudaStream_t>(stream));  \
  }                                                                                                   \
  extern "C" int NAME##_made(autotune::Made* told) { return autotune::made<NAME##_kernel>(told); }
