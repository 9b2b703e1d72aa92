// A GEMM with its epilogue by the tensor cores' and copy engines' instructions of sm_90a, lean where a launch is short: a
// block computes one tile, its copies begin with its first instruction, and where blocks are few they share k out among
// the blocks of a cluster, which add up their parts in their order. Bits are the same each time.
//
// The tensor cores want 64 rows at least. Where A has few, they take B's rows for theirs (kSwapped), and A's for columns,
// of which 8 are enough.
#pragma once

#include "epilogue.cuh"
#include "instructions_sm90.cuh"
#include "tensor_maps.cuh"

namespace autotune {

struct HopperOrder {
  CUtensorMap a, b;
  Order order;
  int steps, share;  // along k, of all blocks of a cluster and of one
};

// A tile of kM by kN results, kK deep in each of kStages steps that are under way; kGroups times four warps share its rows,
// and one warp more copies.
template <class Element, class Output, bool kWindow, bool kSwapped, int kM, int kN, int kK, int kGroups, int kStages>
struct GemmHopper {
  static constexpr int kRows = kSwapped ? kN : kM, kColumns = kSwapped ? kM : kN;  // of the products
  static constexpr int kBlocks = kRows / kGroups / 64;
  static constexpr int kWorkers = 128 * kGroups, kThreads = kWorkers + 32;
  static_assert(kBlocks * kGroups * 64 == kRows && kColumns % 8 == 0 && kColumns <= 256, "not a tile of wgmma.m64nNk16");
  static_assert(kRows <= 256 && kK % kBoxColumns == 0 && kStages >= 2, "not a tile that copies bring");

  static constexpr int kDepth = kK, kBoxes = kK / kBoxColumns;
  static constexpr int kBoxBytesA = kM * kBoxColumns * 2, kBoxBytesB = kN * kBoxColumns * 2;
  static constexpr int kStageBytes = kBoxes * (kBoxBytesA + kBoxBytesB);
  // Floats from one row of the sums to the next, so that a warp's stores meet in no bank.
  static constexpr int kPitch = kSwapped ? kN + 4 : kN + (kN % 16 == 0 ? 8 : 0);
  static constexpr int kSumsBytes = kM * kPitch * 4;
  static constexpr int kBodyBytes = kStages * kStageBytes > kSumsBytes ? kStages * kStageBytes : kSumsBytes;
  static constexpr int kAlignment = 1024;  // over which the rows' chunks are turned
  static constexpr int kShared = kAlignment + kBodyBytes + 2 * kStages * 8;

  static __device__ __forceinline__ void kernel(HopperOrder const& given) {
    Order const& order = given.order;
    int const splits = gridDim.z, split = blockIdx.z;
    int const first_m = blockIdx.x * kM, first_n = blockIdx.y * kN;
    int const first_step = split * given.share;
    int const steps = max(0, min(given.share, given.steps - first_step));
    unsigned char* const shared = shared_memory() + (0u - shared_address(shared_memory())) % kAlignment;
    uint32_t const base = shared_address(shared), full = base + kBodyBytes, empty = full + kStages * 8;
    int const warp = threadIdx.x / 32;
    bool const copies = threadIdx.x == kWorkers;

    Corner corner;
    auto copy_a = [&](int step, int stage) {
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        copy_a_box(base + stage * kStageBytes + box * kBoxBytesA, given, full + stage * 8, corner, first_m,
                   (first_step + step) * kK + box * kBoxColumns);
      }
    };
    auto copy_b = [&](int step, int stage) {
      uint32_t const to = base + stage * kStageBytes + kBoxes * kBoxBytesA;
      barrier_expect(full + stage * 8, kStageBytes);
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        copy_box(to + box * kBoxBytesB, &given.b, full + stage * 8, (first_step + step) * kK + box * kBoxColumns, first_n);
      }
    };

    if (copies) {
      prefetch_map(&given.b);
      prefetch_map(&given.a);
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_init(full + stage * 8, 1);
        barrier_init(empty + stage * 8, kWorkers / 32);
      }
      barriers_are_made();
#pragma unroll 1
      for (int step = 0; step < min(kStages, steps); ++step) copy_b(step, step);
      if constexpr (kWindow) corner = corner_of(order, first_m);
      wait_for_earlier();  // which may still write A
#pragma unroll 1
      for (int step = 0; step < min(kStages, steps); ++step) copy_a(step, step);
    }
    __syncthreads();
    let_next_begin();

    float* const own = reinterpret_cast<float*>(shared);
    if (copies) {
      int stage = 0, parity = 0;
#pragma unroll 1
      for (int step = kStages; step < steps; ++step) {
        barrier_wait(empty + stage * 8, parity);
        copy_b(step, stage);
        copy_a(step, stage);
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    } else if (warp < kWorkers / 32) {
      prefetch_epilogue(order, first_m, first_n);
      float sums[kBlocks][kColumns / 2];
      multiply(sums, base, full, empty, steps);
      meet(kWorkers);  // the sums take the place of the operands
      keep(own, sums, steps > 0);
      if (splits == 1) meet(kWorkers);
    }
    Cluster const cluster;
    if (splits > 1) cluster.sync();
    if (warp < kWorkers / 32) {
      wait_for_earlier();  // which may still write the residual, or read what lies where D will
      Epilogue<Output>::template hand_out<kM, kN, kPitch>(order, own, first_m, first_n, split, splits, threadIdx.x,
                                                          kWorkers);
    }
    if (splits > 1) cluster.sync();  // nobody leaves while its sums are being read
  }

 private:
  // The upper left place under the kernel of a convolution, at the first row of a tile.
  struct Corner {
    int image, y, x;
  };

  static __device__ __forceinline__ Corner corner_of(Order const& order, int row) {
    int const image = row / (order.places_h * order.places_w), place = row % (order.places_h * order.places_w);
    return {image, place / order.places_w * order.stride_h - order.padding_h,
            place % order.places_w * order.stride_w - order.padding_w};
  }

  static __device__ __forceinline__ void copy_a_box(uint32_t to, HopperOrder const& given, uint32_t barrier,
                                                    Corner const& corner, int first_m, int depth) {
    if constexpr (kWindow) {  // channels are whole boxes, so that one lies under one place of the kernel
      Order const& order = given.order;
      int const tap = depth / order.channels, channel = depth % order.channels;
      int const right = tap % order.kernel_w * order.dilation_w, down = tap / order.kernel_w * order.dilation_h;
      copy_pixels(to, &given.a, barrier, channel, corner.x, corner.y, corner.image, right, down);
    } else {
      copy_box(to, &given.a, barrier, depth, first_m);
    }
  }

  // What the epilogue will read, while the products wait for their operands.
  static __device__ __forceinline__ void prefetch_epilogue(Order const& order, int first_m, int first_n) {
    if (order.bias != nullptr && threadIdx.x * 32 < kN && first_n + threadIdx.x * 32 < order.n) {
      prefetch_line(order.bias + first_n + threadIdx.x * 32);
    }
    if (order.residual == nullptr) return;
    constexpr int kLine = 128 / sizeof(Output), kLines = (kN + kLine - 1) / kLine;
    for (int item = threadIdx.x; item < kM * kLines; item += kWorkers) {
      int const row = first_m + item / kLines, column = first_n + item % kLines * kLine;
      if (row >= order.m || column >= order.n) continue;
      prefetch_line(static_cast<Output const*>(order.residual) + static_cast<int64_t>(row) * order.n + column);
    }
  }

  static __device__ __forceinline__ void multiply(float (&sums)[kBlocks][kColumns / 2], uint32_t base, uint32_t full,
                                                  uint32_t empty, int steps) {
    constexpr int kRowBytes = (kSwapped ? kBoxBytesB : kBoxBytesA), kColumnBytes = kSwapped ? kBoxBytesA : kBoxBytesB;
    uint32_t const of_group = threadIdx.x / 128 * (kRows / kGroups) * kBoxColumns * 2;
    uint32_t const rows = base + (kSwapped ? kBoxes * kBoxBytesA : 0) + of_group;
    uint32_t const columns = base + (kSwapped ? 0 : kBoxes * kBoxBytesA);
    int stage = 0, parity = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      barrier_wait(full + stage * 8, parity);
      uint64_t const left = described(rows + stage * kStageBytes), right = described(columns + stage * kStageBytes);
      products_begin();
#pragma unroll
      for (int inner = 0; inner < kK / 16; ++inner) {
        int const box = inner / (kBoxColumns / 16), within = inner % (kBoxColumns / 16) * 32;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          int const at = box * kRowBytes + block * 64 * kBoxColumns * 2 + within;
          Product<Element, kColumns>::run(sums[block], left + at / 16, right + (box * kColumnBytes + within) / 16,
                                          step + inner > 0);
        }
      }
      products_commit();
      if (step > 0) {
        products_wait<1>();  // the tensor cores have left the stage before this one
        if (threadIdx.x % 32 == 0) barrier_arrive(empty + (stage == 0 ? kStages - 1 : stage - 1) * 8);
      }
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
    products_wait<0>();
  }

  // Put a thread's sums where everybody can read them; without any step they are zeros.
  static __device__ __forceinline__ void keep(float* own, float (&sums)[kBlocks][kColumns / 2], bool any) {
    int const lane = threadIdx.x % 32;
    int const first = threadIdx.x / 128 * (kRows / kGroups) + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; i += 2) {
        int const row = first + block * 64 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2;
        float const one = any ? sums[block][i] : 0.0f, other = any ? sums[block][i + 1] : 0.0f;
        if constexpr (kSwapped) {
          own[column * kPitch + row] = one;
          own[(column + 1) * kPitch + row] = other;
        } else {
          *reinterpret_cast<float2*>(own + row * kPitch + column) = make_float2(one, other);
        }
      }
    }
  }
};

template <class Gemm>
__global__ void __launch_bounds__(Gemm::kThreads, 1) gemm_hopper(__grid_constant__ HopperOrder const given) {
  Gemm::kernel(given);
}

// Zero, or an error of the runtime or the driver; the launch is in the stream when this returns.
template <class Gemm, class Element, bool kWindow, int kM, int kN>
int launch_hopper(Order const& order, int splits, cudaStream_t stream) {
  HopperOrder given;
  given.order = order;
  given.steps = (order.k + Gemm::kDepth - 1) / Gemm::kDepth;
  given.share = (given.steps + splits - 1) / splits;
  int error = kWindow ? map_window<Element>(&given.a, order, kM) : map_rows<Element>(&given.a, order.a, order.m, order.k, kM);
  if (error == 0) error = map_rows<Element>(&given.b, order.b, order.n, order.k, kN);
  if (error != 0) return error;
  dim3 const grid((order.m + kM - 1) / kM, (order.n + kN - 1) / kN, splits);
  return launch_clusters(gemm_hopper<Gemm>, given, grid, Gemm::kThreads, Gemm::kShared, order.early != 0, stream);
}

}  // namespace autotune

// One kernel under a name of its own; the arguments are those of GemmHopper.
#define AUTOTUNE_GEMM_HOPPER(NAME, ELEMENT, OUTPUT, WINDOW, SWAPPED, M, N, ...)                                \
  using NAME##_kernel = autotune::GemmHopper<ELEMENT, OUTPUT, WINDOW, SWAPPED, M, N, __VA_ARGS__>;             \
  extern "C" int NAME##_run(autotune::Order const* order, int splits, void* stream) {                          \
    return autotune::launch_hopper<NAME##_kernel, ELEMENT, WINDOW, M, N>(*order, splits,                       \
                                                                         static_cast<cudaStream_t>(stream));   \
  }                                                                                                            \
  extern "C" int NAME##_made(autotune::Made* told) {                                                           \
    return autotune::made(autotune::gemm_hopper<NAME##_kernel>, NAME##_kernel::kShared, told);                 \
  }
