// A GEMM with its epilogue for few rows whose k dimension is shared out among the blocks of a thread block cluster: they
// add up their parts through each other's shared memory, in their order, so that one launch does everything and gives the
// same bits each time. For sm_80 and later; clusters of more than one block from sm_90 on.
#pragma once

#include "epilogue.cuh"

namespace autotune {

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
    auto fetch_a = [&](int step) {
      uint32_t const stage = base + (step % kStages) * kStageBytes;
      int const depth = (first_step + step) * kK;
      if constexpr (kWindow) {
        copy_window(stage, a, order, corners, first_m, depth);
      } else {
        copy_tile<kM>(stage, a, first_m, order.m, depth, order.k);
      }
    };
    auto fetch_b = [&](int step) {
      uint32_t const stage = base + (step % kStages) * kStageBytes + kM * kK * 2;
      copy_tile<kN>(stage, b, first_n, order.n, (first_step + step) * kK, order.k);
    };

    let_next_begin();
    float sums[kTilesM][kTilesN][4] = {};
    if (order.early) {  // what no earlier launch writes
#pragma unroll
      for (int step = 0; step < kStages - 1; ++step) {
        if (step < steps) fetch_b(step);
      }
      wait_for_earlier();
    }
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) {
      if (step < steps) fetch_a(step);
      if (step < steps && !order.early) fetch_b(step);
      commit();
    }
    for (int step = 0; step < steps; ++step) {
      wait_for_all_but<kStages - 2>();
      __syncthreads();  // the stage is there for all threads, and all have left the one that is fetched next
      if (step + kStages - 1 < steps) {
        fetch_a(step + kStages - 1);
        fetch_b(step + kStages - 1);
      }
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
    Cluster const cluster;
    if (splits == 1) __syncthreads();
    else cluster.sync();
    Epilogue<Output>::template hand_out<kM, kN, kPitch>(order, cluster, own, first_m, first_n, split, splits,
                                                        threadIdx.x, kThreads);
    if (splits > 1) cluster.meet();  // nobody leaves while its sums are being read
  }
};

}  // namespace autotune

// One kernel under a name of its own, with the threads and the bytes of shared memory that it is launched with; the other
// arguments are those of GemmCluster.
#define AUTOTUNE_GEMM_CLUSTER(NAME, THREADS, SHARED, ...)                                                       \
  using NAME##_gemm = autotune::GemmCluster<__VA_ARGS__>;                                                       \
  static_assert(NAME##_gemm::kThreads == THREADS && NAME##_gemm::kShared == SHARED, "another launch");          \
  extern "C" __global__ void __launch_bounds__(NAME##_gemm::kThreads)                                           \
      NAME(__grid_constant__ autotune::Order const order) {                                                     \
    NAME##_gemm::kernel(order);                                                                                 \
  }
