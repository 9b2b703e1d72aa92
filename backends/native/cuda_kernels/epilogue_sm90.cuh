// From the sums in the registers of wgmma to results in half precision: each warp turns its own into results, puts them into
// shared memory by whole matrices, from where rows leave in vectors. Nothing else waits, and a residual is there already:
// it was fetched to where the results will lie while the products were computed.
#pragma once

#include "epilogue.cuh"
#include "instructions_sm90.cuh"

namespace autotune {

// A tile of kM by kN results by kGroups times four warps, whose products have kN rows and kM columns where they are swapped.
template <class Output, bool kSwapped, int kM, int kN, int kGroups>
struct DirectEpilogue {
  static constexpr int kRows = kSwapped ? kN : kM, kColumns = kSwapped ? kM : kN;
  static constexpr int kBlocks = kRows / kGroups / 64, kWorkers = 128 * kGroups;
  static constexpr int kChunks = kN / kVector;                  // of 16 bytes, in a row of results
  static constexpr int kPitch = (kChunks | 1) * 16;             // bytes, so that the rows of a matrix meet in no bank
  static constexpr int kBytes = kM * kPitch;
  static constexpr int kBiasBytes = kN * 4;

  using Sums = float[kBlocks][kColumns / 2];

  // The frequent activations alone: with all of them a tile of 256 by 128 spills 100 to 400 bytes of a thread.
  static __device__ __forceinline__ bool serves(Order const& order) {
    Formula const formula = order.activation.formula;
    return sizeof(Output) == 2 && order.n % kVector == 0 &&
           (formula == kNone || formula == kRelu || formula == kTimesBend);
  }

  // Fetch the bias of a tile's columns, zeros where there is none; all workers come.
  static __device__ __forceinline__ void fetch_bias(Order const& order, uint32_t to, int first_n) {
    int const column = threadIdx.x * 4;
    bool const there = order.bias != nullptr && first_n + column < order.n;
    void const* const from = there ? static_cast<void const*>(order.bias + first_n + column) : order.b;
    if (column < kN) copy_ahead(to + column * 4, from, there);
  }

  // Fetch a tile of the residual to where its results will lie.
  static __device__ __forceinline__ void fetch_residual(Order const& order, uint32_t to, int first_m, int first_n) {
    auto const* const residual = static_cast<Output const*>(order.residual);
    each_chunk(kM, threadIdx.x, kWorkers, [&](int row, int chunk) {
      bool const there = first_m + row < order.m && first_n + chunk * kVector < order.n;
      int64_t const at = static_cast<int64_t>(first_m + row) * order.n + first_n + chunk * kVector;
      copy_ahead(to + row * kPitch + chunk * 16, there ? residual + at : residual, there);
    });
  }

  // What was fetched must be seen, and nobody may need what lies at `tile`. `any`: whether there are sums, which are zeros else.
  static __device__ __forceinline__ void finish(Order const& order, Sums& sums, bool any, unsigned char* tile,
                                                float const* bias, bool adds, int first_m, int first_n) {
    uint32_t const places = shared_address(tile);
    if (!any) each(sums, [](float& sum) { sum = 0.0f; });
    add_bias(sums, bias);
    if (adds) add_tile(sums, places);
    with_frequent_activation<Output>(order.activation, [&](auto apply) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < kColumns / 2; ++i) sums[block][i] = apply(sums[block][i]);
      }
    });
    each_pair(places, [&](int block, int i, uint32_t place) {
      float const* const four = sums[block] + i;
      uint32_t const two[2] = {paired<Output>(four[0], four[1]), paired<Output>(four[2], four[3])};
      store_matrices<kSwapped>(place, two);
    });
    if constexpr (kSwapped) {
      meet(kWorkers);
      leave(order, tile, 0, kM, threadIdx.x, kWorkers, first_m, first_n);
    } else {
      __syncwarp();  // whole rows are one warp's
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        leave(order, tile, first_row() + block * 64, 16, threadIdx.x % 32, 32, first_m, first_n);
      }
    }
  }

 private:
  // Of the products of a warp, in its first block of 64.
  static __device__ __forceinline__ int first_row() {
    return threadIdx.x / 128 * (kRows / kGroups) + threadIdx.x % 128 / 32 * 16;
  }

  template <class Use>
  static __device__ __forceinline__ void each(Sums& sums, Use use) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) use(sums[block][i]);
    }
  }

  static __device__ __forceinline__ void add_bias(Sums& sums, float const* bias) {
    int const lane = threadIdx.x % 32;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if constexpr (kSwapped) {
        int const row = first_row() + block * 64 + lane / 4;
        float const upper = bias[row], lower = bias[row + 8];
#pragma unroll
        for (int i = 0; i < kColumns / 2; ++i) sums[block][i] += i % 4 < 2 ? upper : lower;
      } else {
#pragma unroll
        for (int i = 0; i < kColumns / 2; i += 4) {
          float2 const two = *reinterpret_cast<float2 const*>(bias + i * 2 + lane % 4 * 2);
          sums[block][i] += two.x, sums[block][i + 1] += two.y;
          sums[block][i + 2] += two.x, sums[block][i + 3] += two.y;
        }
      }
    }
  }

  static __device__ __forceinline__ void add_tile(Sums& sums, uint32_t places) {
    each_pair(places, [&](int block, int i, uint32_t place) {
      uint32_t two[2];
      load_two_matrices<kSwapped>(two, place);
      float* const four = sums[block] + i;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float2 const both = unpaired<Output>(two[j]);
        four[j * 2] += both.x, four[j * 2 + 1] += both.y;
      }
    });
  }

  // For 16 rows by 8 columns of products at a time: the block, the first of a thread's four sums, and where the row of results
  // lies that this lane gives the address of.
  template <class Use>
  static __device__ __forceinline__ void each_pair(uint32_t places, Use use) {
    int const lane = threadIdx.x % 16;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      int const row = first_row() + block * 64;
      uint32_t const first = kSwapped ? places + lane % 8 * kPitch + (row + lane / 8 * 8) * 2 : places + (row + lane) * kPitch;
#pragma unroll
      for (int i = 0; i < kColumns / 2; i += 4) use(block, i, first + i / 4 * (kSwapped ? 8 * kPitch : 16));
    }
  }

  template <class Use>
  static __device__ __forceinline__ void each_chunk(int rows, int thread, int threads, Use use) {
    int row = thread / kChunks, chunk = thread % kChunks;
#pragma unroll 4
    while (row < rows) {
      use(row, chunk);
      row += threads / kChunks, chunk += threads % kChunks;
      if (chunk >= kChunks) chunk -= kChunks, ++row;
    }
  }

  static __device__ __forceinline__ void leave(Order const& order, unsigned char const* tile, int from, int rows, int thread,
                                               int threads, int first_m, int first_n) {
    each_chunk(min(rows, order.m - first_m - from), thread, threads, [&](int row, int chunk) {
      if (first_n + chunk * kVector >= order.n) return;
      int64_t const at = static_cast<int64_t>(first_m + from + row) * order.n + first_n + chunk * kVector;
      *reinterpret_cast<uint4*>(static_cast<Output*>(order.d) + at) =
          *reinterpret_cast<uint4 const*>(tile + (from + row) * kPitch + chunk * 16);
    });
  }
};

}  // namespace autotune
