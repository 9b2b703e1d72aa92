// A GEMM with its epilogue by the tensor cores' and copy engines' instructions of sm_90a, lean where a launch is short: a
// block computes one tile, its copies begin with its first instruction, and where blocks are few they share k out among
// the blocks of a cluster, which add up their parts in their order. Bits are the same each time. What bounds most shapes is
// what the L2 cache hands out: so neighbours in a cluster may each fetch a part of what they both read, for both.
//
// The tensor cores want 64 rows at least. Where A has few, they take B's rows for theirs (kSwapped), and A's for columns,
// of which 8 are enough.
#pragma once

#include "epilogue_sm90.cuh"
#include "instructions_sm90.cuh"

namespace autotune {

struct HopperOrder {
  TensorMap a, b;
  Order order;
  int steps, share;  // along k, of all blocks of a cluster and of one
};

// A tile of kM by kN results, kK deep in each of kStages steps that are under way; kGroups times four warps share its rows,
// and one warp more copies. A multiprocessor should have room for kResidents blocks. kAlongM by kAlongN blocks fetch A and B
// together.
template <class Element, class Output, bool kWindow, bool kSwapped, int kM, int kN, int kK, int kGroups, int kResidents,
          int kStages, int kAlongM, int kAlongN>
struct GemmHopper {
  static constexpr int kRows = kSwapped ? kN : kM, kColumns = kSwapped ? kM : kN;  // of the products
  static constexpr int kBlocks = kRows / kGroups / 64;
  static constexpr int kWorkers = 128 * kGroups, kThreads = kWorkers + 32, kAtOnce = kResidents;
  static_assert(kBlocks * kGroups * 64 == kRows && kColumns % 8 == 0 && kColumns <= 256, "not a tile of wgmma.m64nNk16");
  static_assert(kRows <= 256 && kK % kBoxColumns == 0 && kStages >= 2 && kStages <= 32, "not a tile that copies bring");

  static constexpr int kDepth = kK, kBoxes = kK / kBoxColumns;
  static constexpr int kBoxBytesA = kM * kBoxColumns * 2, kBoxBytesB = kN * kBoxColumns * 2;
  // Rows that a block fetches: blocks along N read the same A, blocks along M the same B.
  static constexpr int kOwnM = kM / kAlongN, kOwnN = kN / kAlongM;
  static constexpr bool kTogether = kAlongM * kAlongN > 1;
  static constexpr int kReaders = kAlongM + kAlongN - 1;  // blocks that what a block fetches goes to, itself among them
  static_assert(kOwnM % 8 == 0 && kOwnM * kAlongN == kM && kOwnN % 8 == 0 && kOwnN * kAlongM == kN, "uneven parts");
  static constexpr int kStageBytes = kBoxes * (kBoxBytesA + kBoxBytesB);
  // Floats from one row of the sums to the next, so that a warp's stores meet in no bank.
  static constexpr int kPitch = kSwapped ? kN + 4 : kN + (kN % 16 == 0 ? 8 : 0);
  static constexpr int kSumsBytes = kM * kPitch * 4;
  static constexpr int kBodyBytes = kStages * kStageBytes > kSumsBytes ? kStages * kStageBytes : kSumsBytes;
  static constexpr int kAlignment = 1024;  // over which the rows' chunks are turned
  using Direct = DirectEpilogue<Output, kSwapped, kM, kN, kGroups>;
  static constexpr int kShared = kAlignment + kBodyBytes + 2 * kStages * 8 + Direct::kBiasBytes;
  // Stages that a tile of results takes the place of, where a residual is waiting there for the sums.
  static constexpr int kLess = (Direct::kBytes + kStageBytes - 1) / kStageBytes;
  static constexpr bool kStaged = kStages - kLess >= 2;
  static_assert(kLess <= kStages, "results do not fit");

  static __device__ __forceinline__ void kernel(HopperOrder const& given) {
    Order const& order = given.order;
    int const splits = gridDim.z, split = blockIdx.z;
    int const first_m = blockIdx.x * kM, first_n = blockIdx.y * kN;
    int const first_step = split * given.share;
    int const steps = max(0, min(given.share, given.steps - first_step));
    unsigned char* const shared = shared_memory() + (0u - shared_address(shared_memory())) % kAlignment;
    uint32_t const base = shared_address(shared), full = base + kBodyBytes, empty = full + kStages * 8;
    int const warp = uniform(threadIdx.x / 32);
    bool const copies = warp == kWorkers / 32;
    int const along_m = blockIdx.x % kAlongM, along_n = blockIdx.y % kAlongN, plane = split * kAlongM * kAlongN;
    Cluster const cluster{along_m + along_n * kAlongM, kAlongM * kAlongN};
    bool const adds = order.residual != nullptr, direct = Direct::serves(order) && splits == 1 && (kStaged || !adds);
    int const ring = direct && adds ? kStages - kLess : kStages;
    unsigned char* const tile = shared + (kStages - kLess) * kStageBytes;
    auto* const bias = reinterpret_cast<float*>(shared + kBodyBytes + 2 * kStages * 8);

    Corner corner;
    auto copy_a = [&](int step, int stage) {
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        copy_a_box(base + stage * kStageBytes + box * kBoxBytesA + along_n * kOwnM * kBoxColumns * 2, given,
                   full + stage * 8, corner, first_m + along_n * kOwnM, (first_step + step) * kK + box * kBoxColumns,
                   along_m + plane);
      }
    };
    auto copy_b = [&](int step, int stage) {
      uint32_t const to = base + stage * kStageBytes + kBoxes * kBoxBytesA + along_m * kOwnN * kBoxColumns * 2;
      barrier_expect(full + stage * 8, kStageBytes);
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        int const depth = (first_step + step) * kK + box * kBoxColumns, row = first_n + along_m * kOwnN;
        if constexpr (kAlongM > 1) {
          constexpr int kRow = (1 << kAlongM) - 1;
          copy_box_to(to + box * kBoxBytesB, &given.b, full + stage * 8, depth, row, kRow << (along_n * kAlongM + plane));
        } else {
          copy_box(to + box * kBoxBytesB, &given.b, full + stage * 8, depth, row);
        }
      }
    };

    auto copy_the_rest = [&] {
      int stage = 0, parity = 0;
#pragma unroll 1
      for (int step = ring; step < steps; ++step) {
        barrier_wait(empty + stage * 8, parity);
        copy_b(step, stage);
        copy_a(step, stage);
        if (++stage == ring) stage = 0, parity ^= 1;
      }
    };

    if (copies && is_chosen()) {
      prefetch_map(&given.b);
      prefetch_map(&given.a);
#pragma unroll
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_init(full + stage * 8, 1);
        barrier_init(empty + stage * 8, kWorkers / 32 * kReaders);
      }
      barriers_are_made();
    }
    if constexpr (kTogether) {
      __syncwarp();
      cluster.sync();  // everybody's barriers
    }
    if (copies && is_chosen()) {
#pragma unroll 1
      for (int step = 0; step < min(ring, steps); ++step) copy_b(step, step);
      if constexpr (kWindow) corner = corner_of(order, first_m + along_n * kOwnM);
      wait_for_earlier();  // which may still write A
#pragma unroll 1
      for (int step = 0; step < min(ring, steps); ++step) copy_a(step, step);
    }
    if constexpr (!kTogether) __syncthreads();
    let_next_begin();

    float* const own = reinterpret_cast<float*>(shared);
    if (copies) {
      if (is_chosen()) copy_the_rest();
      __syncwarp();
    } else {
      if (direct) {
        Direct::fetch_bias(order, shared_address(bias), first_n);
        if (adds) {
          wait_for_earlier();  // which may still write it
          Direct::fetch_residual(order, shared_address(tile), first_m, first_n);
        }
        commit();
      } else {
        prefetch_epilogue(order, first_m, first_n);
      }
      float sums[kBlocks][kColumns / 2];
      multiply(sums, base, full, empty, ring, steps, plane, along_m, along_n);
      if (direct) wait_for_all_but<0>();
      meet(kWorkers);  // what was fetched is there for all, and results or sums take the place of the operands
      if (direct) {
        wait_for_earlier();  // which may still read what lies where D will
        Direct::finish(order, sums, steps > 0, tile, bias, adds, first_m, first_n);
      } else {
        keep(own, sums, steps > 0);
        if (splits == 1) meet(kWorkers);
      }
    }
    if (splits > 1) cluster.sync();
    if (!copies && !direct) {
      wait_for_earlier();  // which may still write the residual, or read what lies where D will
      Epilogue<Output>::template hand_out<kM, kN, kPitch>(order, cluster, own, first_m, first_n, split, splits,
                                                          threadIdx.x, kWorkers);
    }
    if (splits > 1) cluster.meet();  // nobody leaves while its sums are being read
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
                                                    Corner const& corner, int row, int depth, int first_reader) {
    uint16_t readers = 0;
#pragma unroll
    for (int i = 0; i < kAlongN; ++i) readers |= 1 << (first_reader + i * kAlongM);
    if constexpr (kWindow) {  // channels are whole boxes, so that one lies under one place of the kernel
      Order const& order = given.order;
      int const tap = depth / order.channels, channel = depth % order.channels;
      int const right = tap % order.kernel_w * order.dilation_w, down = tap / order.kernel_w * order.dilation_h;
      if constexpr (kAlongN > 1) {
        copy_pixels_to(to, &given.a, barrier, channel, corner.x, corner.y, corner.image, right, down, readers);
      } else {
        copy_pixels(to, &given.a, barrier, channel, corner.x, corner.y, corner.image, right, down);
      }
    } else if constexpr (kAlongN > 1) {
      copy_box_to(to, &given.a, barrier, depth, row, readers);
    } else {
      copy_box(to, &given.a, barrier, depth, row);
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

  // Tell who fetches that this warp has left a stage: one lane each of the blocks that fetch for this one.
  static __device__ __forceinline__ void leave(uint32_t empty, int plane, int along_m, int along_n) {
    int const lane = threadIdx.x % 32;
    if constexpr (!kTogether) {
      if (lane == 0) barrier_arrive(empty);
    } else if (lane < kReaders) {  // first those along M, then the others along N
      int const other = lane - kAlongM, n = other < along_n ? other : other + 1;
      barrier_arrive_at(empty, plane + (lane < kAlongM ? lane + along_n * kAlongM : along_m + n * kAlongM));
    }
  }

  static __device__ __forceinline__ void multiply(float (&sums)[kBlocks][kColumns / 2], uint32_t base, uint32_t full,
                                                  uint32_t empty, int ring, int steps, int plane, int along_m,
                                                  int along_n) {
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
        // Only where somebody waits for it, so that nobody is told who may have ended.
        if (step - 1 + ring < steps) leave(empty + (stage == 0 ? ring - 1 : stage - 1) * 8, plane, along_m, along_n);
      }
      if (++stage == ring) stage = 0, parity ^= 1;
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

}  // namespace autotune

// One kernel under a name of its own, with the threads and the bytes of shared memory that it is launched with; the other
// arguments are those of GemmHopper.
#define AUTOTUNE_GEMM_HOPPER(NAME, THREADS, SHARED, ...)                                                        \
  using NAME##_gemm = autotune::GemmHopper<__VA_ARGS__>;                                                        \
  static_assert(NAME##_gemm::kThreads == THREADS && NAME##_gemm::kShared == SHARED, "another launch");          \
  extern "C" __global__ void __launch_bounds__(NAME##_gemm::kThreads, NAME##_gemm::kAtOnce)                     \
      NAME(__grid_constant__ autotune::HopperOrder const given) {                                               \
    NAME##_gemm::kernel(given);                                                                                 \
  }
