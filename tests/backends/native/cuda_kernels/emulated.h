// What instructions.cuh and the CUDA runtime offer to the kernels, on a CPU: every thread of a cluster is a fiber, and
// what threads do together happens when all of them have come to it. Copies ahead arrive when they are waited for, so
// that a kernel that reads too early reads what lay there before.
#pragma once

#define AUTOTUNE_INSTRUCTIONS

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __expf expf

struct uint3 { int x, y, z; };
struct dim3 {
  int x, y, z;
  dim3(int x = 1, int y = 1, int z = 1) : x(x), y(y), z(z) {}
};
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
using std::max;
using std::min;

namespace autotune {

struct Half {
  _Float16 value;
};
struct Bfloat16 {
  uint16_t bits;
};
inline float as_float(float value) { return value; }
inline float as_float(Half value) { return static_cast<float>(value.value); }
inline float as_float(Bfloat16 value) {
  uint32_t const bits = static_cast<uint32_t>(value.bits) << 16;
  float answer;
  memcpy(&answer, &bits, 4);
  return answer;
}
template <class Output>
Output rounded(float value);
template <>
inline float rounded<float>(float value) { return value; }
template <>
inline Half rounded<Half>(float value) { return {static_cast<_Float16>(value)}; }
template <>
inline Bfloat16 rounded<Bfloat16>(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // no NaN is rounded in these tests
}

}  // namespace autotune

namespace emulated {

struct Meeting {  // of some threads: nobody goes on before all have come
  int expected = 0, come = 0, times = 0;
};

struct Copy {
  unsigned char* to;
  void const* from;
  bool there;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  uint3 thread, block;
  int rank = 0;  // of its block in the cluster
  std::deque<std::vector<Copy>> groups{1};
  bool ended = false;
};

struct Warp {
  Meeting meeting;
  uint32_t values[32][8];
};

constexpr int kAhead = 4;  // times that a warp goes on before the next one does, so that who does not wait for others shows
constexpr size_t kStack = 128 * 1024;
inline std::vector<Fiber> fibers;
inline std::vector<Meeting> blocks;
inline std::vector<Warp> warps;
inline std::vector<std::vector<unsigned char>> memories;
inline Meeting cluster;
inline ucontext_t scheduler;
inline Fiber* now = nullptr;
inline int warps_a_block = 0;
inline void (*begin_cluster)() = nullptr;

inline void meet(Meeting& meeting) {
  int const time = meeting.times;
  if (++meeting.come == meeting.expected) {
    meeting.come = 0;
    ++meeting.times;
  }
  while (meeting.times == time) swapcontext(&now->context, &scheduler);
}

inline Warp& warp() { return warps[now->rank * warps_a_block + now->thread.x / 32]; }

// Gives the values of all threads of a warp once all of them have told theirs.
template <class Use>
void together(uint32_t const* told, int count, Use use) {
  Warp& own = warp();
  memcpy(own.values[now->thread.x % 32], told, count * 4);
  meet(own.meeting);
  use(own.values);
  meet(own.meeting);
}

}  // namespace emulated

#define threadIdx (emulated::now->thread)
#define blockIdx (emulated::now->block)
inline dim3 gridDim;

inline void __syncwarp() { emulated::meet(emulated::warp().meeting); }
inline void __syncthreads() { emulated::meet(emulated::blocks[emulated::now->rank]); }

namespace autotune {

inline unsigned char* shared_memory_of(int rank) {
  auto const at = reinterpret_cast<uintptr_t>(emulated::memories[rank].data());
  return reinterpret_cast<unsigned char*>((at + 127) / 128 * 128);
}
inline unsigned char* shared_memory() { return shared_memory_of(emulated::now->rank); }

inline int uniform(int value) { return value; }
inline void let_next_begin() {}
inline void wait_for_earlier() {}
inline float fast_tanh(float x) { return tanhf(x); }
inline float clamped(float x, float top) { return x < 0.0f ? 0.0f : x > top ? top : x; }

inline uint32_t shared_address(void const* at) {
  return static_cast<uint32_t>(static_cast<unsigned char const*>(at) - shared_memory());
}

struct Cluster {
  int first = 0, step = 1;
  void sync() const { emulated::meet(emulated::cluster); }
  void meet() const { sync(); }
  float const* of(float* own, int other) const {
    auto const at = reinterpret_cast<unsigned char*>(own) - shared_memory();
    return reinterpret_cast<float const*>(shared_memory_of(first + other * step) + at);
  }
};

inline void copy_ahead(uint32_t to, void const* from, bool there) {
  if (to % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) abort();
  emulated::now->groups.back().push_back({shared_memory() + to, from, there});
}

inline void commit() { emulated::now->groups.emplace_back(); }

template <int kLeft>
void wait_for_all_but() {
  auto& groups = emulated::now->groups;
  while (groups.size() > kLeft + 1) {  // the last one is not committed yet
    for (auto const& copy : groups.front()) {
      if (copy.there) memcpy(copy.to, copy.from, 16);
      else memset(copy.to, 0, 16);
    }
    groups.pop_front();
  }
}

template <class Element>
uint32_t paired(float first, float second) {
  uint16_t two[2] = {};
  if constexpr (sizeof(Element) == 2) {
    Element const both[2] = {rounded<Element>(first), rounded<Element>(second)};
    memcpy(two, both, 4);
  }
  return two[0] | static_cast<uint32_t>(two[1]) << 16;
}

inline void load_matrices(uint32_t (&to)[4], uint32_t from) {
  emulated::together(&from, 1, [&](uint32_t (*values)[8]) {
    int const lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
      memcpy(&to[i], shared_memory() + values[8 * i + lane / 4][0] + lane % 4 * 4, 4);
    }
  });
}

template <class Element>
float element(uint32_t pair, int which) {
  uint16_t const bits = static_cast<uint16_t>(which ? pair >> 16 : pair);
  Element value;
  memcpy(&value, &bits, 2);
  return as_float(value);
}

template <class Element>
float2 unpaired(uint32_t both) {
  if constexpr (sizeof(Element) == 4) return {};
  else return {element<Element>(both, 0), element<Element>(both, 1)};
}

// mma.m16n8k16 as the PTX manual lays its operands out over the threads.
template <class Element>
void multiply(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  uint32_t const told[6] = {a[0], a[1], a[2], a[3], b0, b1};
  emulated::together(told, 6, [&](uint32_t (*values)[8]) {
    int const lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
      int const row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        uint32_t const* const left = values[row % 8 * 4 + k % 8 / 2];
        uint32_t const* const right = values[column * 4 + k % 8 / 2];
        c[i] += element<Element>(left[row / 8 + k / 8 * 2], k % 2) * element<Element>(right[4 + k / 8], k % 2);
      }
    }
  });
}

}  // namespace autotune

namespace emulated {

struct Kernel {  // a function of a module
  char const* name;
  void (*call)(void const* parameter);
};
inline std::vector<Kernel> kernels;
inline Kernel const* running = nullptr;
inline void const* parameter = nullptr;

inline void run_one() {
  running->call(parameter);
  now->ended = true;
  swapcontext(&now->context, &scheduler);
}

}  // namespace emulated

// Makes a kernel known to the driver below.
#define EMULATE(NAME, PARAMETER)                                                                       \
  static bool const NAME##_is_known = (emulated::kernels.push_back({#NAME, [](void const* parameter) { \
                                         NAME(*static_cast<PARAMETER const*>(parameter));              \
                                       }}),                                                            \
                                       true);

// The driver's calls that load and launch a kernel (cuda.h); there is one device, and its memory is the host's.
extern "C" {
struct LaunchAttribute {
  int id, pad;
  unsigned value[3];
  char rest[52];
};
struct LaunchConfig {
  unsigned grid[3], threads[3], shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
int cuInit(unsigned) { return 0; }
int cuGetErrorName(int, char const** text) { return *text = "EMULATED", 0; }
int cuGetErrorString(int, char const** text) { return *text = "refused by the emulation", 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGet(int* device, int number) { return *device = number, number; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &emulated::cluster, 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxPushCurrent_v2(void*) { return 0; }
int cuCtxPopCurrent_v2(void**) { return 0; }
int cuModuleLoadData(void** module, void const*) { return *module = &emulated::kernels, 0; }
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void*, char const* name) {
  for (auto const& kernel : emulated::kernels) {
    if (strcmp(kernel.name, name) == 0) return *function = const_cast<emulated::Kernel*>(&kernel), 0;
  }
  return 500;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuFuncGetAttribute(int* value, int, void*) { return *value = 0, 0; }
int cuFuncSetCacheConfig(void*, int) { return 0; }

// Runs the clusters one after the other.
int cuLaunchKernelEx(LaunchConfig const* how, void* function, void** parameters, void**) {
  using namespace emulated;
  int const threads = how->threads[0];
  dim3 of;
  for (unsigned i = 0; i < how->attribute_count; ++i) {
    auto const& value = how->attributes[i].value;
    if (how->attributes[i].id == 4) of = {int(value[0]), int(value[1]), int(value[2])};
  }
  gridDim = {int(how->grid[0]), int(how->grid[1]), int(how->grid[2])};
  if (gridDim.x % of.x != 0 || gridDim.y % of.y != 0 || gridDim.z % of.z != 0) return 1;
  int const size = of.x * of.y * of.z;
  if (size > 8) return 1;
  dim3 const clusters(gridDim.x / of.x, gridDim.y / of.y, gridDim.z / of.z);
  warps_a_block = threads / 32;
  running = static_cast<Kernel const*>(function);
  parameter = parameters[0];
  for (int at = 0; at < clusters.x * clusters.y * clusters.z; ++at) {
    blocks.assign(size, {threads, 0, 0});
    warps.assign(size * warps_a_block, {{32, 0, 0}, {}});
    // All bits set are NaN: what is read before it was written shows.
    memories.assign(size, std::vector<unsigned char>(how->shared_bytes + 128, 0xff));
    cluster = {size * threads, 0, 0};
    if (begin_cluster) begin_cluster();
    fibers = std::vector<Fiber>(size * threads);
    for (int i = 0; i < size * threads; ++i) {
      Fiber& fiber = fibers[i];
      int const rank = i / threads;
      fiber.thread = {i % threads, 0, 0};
      fiber.rank = rank;
      fiber.block = {at % clusters.x * of.x + rank % of.x, at / clusters.x % clusters.y * of.y + rank / of.x % of.y,
                     at / (clusters.x * clusters.y) * of.z + rank / (of.x * of.y)};
      fiber.stack = std::make_unique<char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      makecontext(&fiber.context, &run_one, 0);
    }
    for (size_t left = fibers.size(); left > 0;) {
      for (size_t warp = 0; warp < fibers.size(); warp += 32) {
        for (int turn = 0; turn < kAhead; ++turn) {
          for (size_t lane = 0; lane < 32; ++lane) {
            Fiber& fiber = fibers[warp + lane];
            if (fiber.ended) continue;
            now = &fiber;
            swapcontext(&scheduler, &fiber.context);
            left -= fiber.ended;
          }
        }
      }
    }
  }
  return 0;
}
}
