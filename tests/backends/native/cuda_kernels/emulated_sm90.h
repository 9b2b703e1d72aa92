// What instructions_sm90.cuh offers to the kernels, and the driver's descriptions of operands, on a CPU. A copy's bytes are unknown from when it is
// begun until somebody waits for its barrier; products read their operands when they are waited for, and their sums are
// unknown until then: so whoever reads or writes too early computes something else.
#include "emulated.h"

#define AUTOTUNE_INSTRUCTIONS_SM90

#include <functional>
#include <map>

#include "epilogue.cuh"

namespace autotune {

constexpr int kBoxColumns = 64;

struct alignas(64) TensorMap {
  unsigned char const* from;
  int rank, sizes[4], box, lower[2], upper[2], steps[2];  // of images: channels, width, height, images
  int64_t pixel, row;
  char rest[56];
};
static_assert(sizeof(TensorMap) == 128);

}  // namespace autotune

namespace emulated {

struct Barrier {
  int expected = 0, left = 0, phase = 0;
  int64_t bytes = 0;  // that are still to come
  std::vector<std::function<void()>> copies;

  void over() {
    if (left == 0 && bytes == 0) ++phase, left = expected;
  }
};

inline std::map<std::pair<int, uint32_t>, Barrier> barriers;  // by the rank of a block and address
inline std::map<std::pair<int, int>, Meeting> meetings;       // of some of a block's threads
inline std::map<Fiber*, std::deque<std::vector<std::function<void()>>>> products;

inline Barrier& barrier_of(int rank, uint32_t at) { return barriers.at({rank, at}); }
inline Barrier& barrier_at(uint32_t at) { return barrier_of(now->rank, at); }

// What a new cluster finds.
inline void begin_sm90() {
  barriers.clear();
  meetings.clear();
  products.clear();
}

inline bool const begins = (begin_cluster = begin_sm90, true);

// Bits 4 to 6 of an address are turned by bits 7 to 9.
inline uint32_t turned(uint32_t at) { return at ^ (at >> 7 & 7) << 4; }

}  // namespace emulated

namespace autotune {

inline bool is_chosen() { return threadIdx.x % 32 == 5; }

inline void barrier_init(uint32_t barrier, int arrivals) {
  emulated::barriers[{emulated::now->rank, barrier}] = {arrivals, arrivals};
}
inline void barriers_are_made() {}

inline void barrier_arrive_at(uint32_t barrier, int rank) {
  auto& at = emulated::barrier_of(rank, barrier);
  if (at.left-- == 0) abort();
  at.over();
}
inline void barrier_arrive(uint32_t barrier) { barrier_arrive_at(barrier, emulated::now->rank); }

inline void barrier_expect(uint32_t barrier, int bytes) {
  emulated::barrier_at(barrier).bytes += bytes;
  barrier_arrive(barrier);
}

inline void barrier_wait(uint32_t barrier, int parity) {
  auto& at = emulated::barrier_at(barrier);
  while ((at.phase & 1) == parity) {
    auto copies = std::move(at.copies);
    at.copies.clear();
    for (auto& copy : copies) copy();
    at.over();
    if ((at.phase & 1) == parity) swapcontext(&emulated::now->context, &emulated::scheduler);
  }
}

inline void meet(int threads) {
  auto& meeting = emulated::meetings[{emulated::now->rank, threads}];
  meeting.expected = threads;
  emulated::meet(meeting);
}

// Where an element of a thread's matrix lies: its row or, turned, its column is a row of 16 bytes that another thread names.
inline unsigned char* place_of(uint32_t (*values)[8], int matrix, bool turned, int which) {
  int const lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2 + which;
  uint32_t const at = values[matrix * 8 + (turned ? column : row)][0];
  if (at % 16 != 0) abort();
  return shared_memory() + at + (turned ? row : column) * 2;
}

template <bool kTurned>
void store_matrices(uint32_t at, uint32_t const (&two)[2]) {
  emulated::together(&at, 1, [&](uint32_t (*values)[8]) {
    for (int i = 0; i < 4; ++i) {
      uint16_t const bits = two[i / 2] >> i % 2 * 16;
      memcpy(place_of(values, i / 2, kTurned, i % 2), &bits, 2);
    }
  });
}

template <bool kTurned>
void load_two_matrices(uint32_t (&two)[2], uint32_t at) {
  emulated::together(&at, 1, [&](uint32_t (*values)[8]) {
    two[0] = two[1] = 0;
    for (int i = 0; i < 4; ++i) {
      uint16_t bits;
      memcpy(&bits, place_of(values, i / 2, kTurned, i % 2), 2);
      two[i / 2] |= static_cast<uint32_t>(bits) << i % 2 * 16;
    }
  });
}

inline void prefetch_map(TensorMap const*) {}
inline void prefetch_line(void const*) {}

using Source = std::function<unsigned char const*(int row, int chunk)>;

// Copies rows of 128 bytes, of which `source` gives the addresses, or zeros; all of them count, in every block that is asked.
inline void copy_rows(uint32_t to, uint32_t barrier, int rows, uint16_t readers, Source source) {
  if (to % 1024 != 0) abort();
  for (int rank = 0; rank < 16; ++rank) {
    if (!(readers >> rank & 1)) continue;
    unsigned char* const memory = shared_memory_of(rank);
    memset(memory + to, 0xff, rows * 128);
    auto& at = emulated::barrier_of(rank, barrier);
    at.copies.push_back([=, &at] {
      for (int row = 0; row < rows; ++row) {
        for (int chunk = 0; chunk < 8; ++chunk) {
          unsigned char* const place = memory + emulated::turned(to + row * 128 + chunk * 16);
          if (auto const* from = source(row, chunk)) memcpy(place, from, 16);
          else memset(place, 0, 16);
        }
      }
      at.bytes -= rows * 128;
    });
  }
}

inline void copy_box_to(uint32_t to, TensorMap const* map, uint32_t barrier, int column, int row, uint16_t readers) {
  TensorMap const of = *map;
  if (of.rank != 2) abort();
  copy_rows(to, barrier, of.box, readers, [=](int i, int chunk) -> unsigned char const* {
    int const at = column + chunk * 8, in = row + i;
    if (in >= of.sizes[1] || at >= of.sizes[0]) return nullptr;
    return of.from + (static_cast<int64_t>(in) * of.sizes[0] + at) * 2;
  });
}
inline void copy_box(uint32_t to, TensorMap const* map, uint32_t barrier, int column, int row) {
  copy_box_to(to, map, barrier, column, row, 1 << emulated::now->rank);
}

inline void copy_pixels_to(uint32_t to, TensorMap const* map, uint32_t barrier, int channel, int x, int y, int image,
                           int right, int down, uint16_t readers) {
  TensorMap const of = *map;
  if (of.rank != 4 || channel + kBoxColumns > of.sizes[0]) abort();
  // From the first pixel on through the box: its corners are counted from the first and the last pixel of an image.
  std::vector<std::array<int, 3>> places;
  for (int i = 0; i < of.box; ++i) {
    places.push_back({image, y, x});
    if ((x += of.steps[0]) < of.sizes[1] + of.upper[0]) continue;
    x = of.lower[0];
    if ((y += of.steps[1]) < of.sizes[2] + of.upper[1]) continue;
    y = of.lower[1];
    ++image;
  }
  copy_rows(to, barrier, of.box, readers, [=](int i, int chunk) -> unsigned char const* {
    int const in = places[i][0], row = places[i][1] + down, column = places[i][2] + right;
    if (in >= of.sizes[3] || row < 0 || row >= of.sizes[2] || column < 0 || column >= of.sizes[1]) return nullptr;
    return of.from + ((static_cast<int64_t>(in) * of.sizes[2] + row) * of.row + column * of.pixel + channel + chunk * 8) * 2;
  });
}
inline void copy_pixels(uint32_t to, TensorMap const* map, uint32_t barrier, int channel, int x, int y, int image, int right,
                        int down) {
  copy_pixels_to(to, map, barrier, channel, x, y, image, right, down, 1 << emulated::now->rank);
}

inline uint64_t described(uint32_t tile) {
  return static_cast<uint64_t>((tile & 0x3ffff) >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

inline void products_begin() { emulated::products[emulated::now].resize(1 + emulated::products[emulated::now].size()); }
inline void products_commit() {}

template <int kLeft>
void products_wait() {
  auto& groups = emulated::products[emulated::now];
  while (groups.size() > kLeft) {
    for (auto& product : groups.front()) product();
    groups.pop_front();
  }
}

// An element of a described tile: a row of its 64 columns, and one of 16 from where the description says.
template <class Element>
float element_of(unsigned char const* memory, uint64_t description, int row, int column) {
  if (description >> 62 != 1) abort();
  uint32_t const start = (description & 0x3fff) << 4, stride = (description >> 32 & 0x3fff) << 4;
  uint16_t bits;
  memcpy(&bits, memory + emulated::turned(start + row / 8 * stride + row % 8 * 128 + column * 2), 2);
  return element<Element>(bits, 0);
}

template <class Element, int kColumns>
struct Product {
  static void run(float (&sums)[kColumns / 2], uint64_t a, uint64_t b, int add) {
    int const lane = threadIdx.x % 32, first = threadIdx.x % 128 / 32 * 16 + lane / 4;
    unsigned char const* const memory = shared_memory();
    if (!add) std::fill_n(sums, kColumns / 2, NAN);
    emulated::products[emulated::now].back().push_back([=, &sums] {
      for (int i = 0; i < kColumns / 2; ++i) {
        int const row = first + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = add ? sums[i] : 0.0f;
        for (int k = 0; k < 16; ++k) {
          sum += element_of<Element>(memory, a, row, k) * element_of<Element>(memory, b, column, k);
        }
        sums[i] = sum;
      }
    });
  }
};

}  // namespace autotune

// The driver makes descriptions as cuda.h says; what the kernels need of them is checked.
extern "C" {
int cuTensorMapEncodeTiled(autotune::TensorMap* map, int type, unsigned rank, void* from, uint64_t const* sizes,
                           uint64_t const* strides, unsigned const* box, unsigned const* steps, int interleave, int swizzle,
                           int, int fill) {
  auto const at = reinterpret_cast<uintptr_t>(from);
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0 || (type != 6 && type != 9) || interleave != 0 || swizzle != 3) return 1;
  if (rank != 2 || at % 16 != 0 || strides[0] != sizes[0] * 2 || strides[0] % 16 != 0 || fill != 0) return 1;
  if (box[0] != 64 || box[1] < 1 || box[1] > 256 || steps[0] != 1 || steps[1] != 1) return 1;
  *map = {static_cast<unsigned char const*>(from), 2, {int(sizes[0]), int(sizes[1])}, int(box[1])};
  return 0;
}
int cuTensorMapEncodeIm2col(autotune::TensorMap* map, int type, unsigned rank, void* from, uint64_t const* sizes,
                            uint64_t const* strides, int const* lower, int const* upper, unsigned channels,
                            unsigned pixels, unsigned const* steps, int interleave, int swizzle, int, int fill) {
  auto const at = reinterpret_cast<uintptr_t>(from);
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0 || (type != 6 && type != 9) || interleave != 0 || swizzle != 3) return 1;
  if (rank != 4 || at % 16 != 0 || channels != 64 || pixels < 1 || pixels > 256 || fill != 0) return 1;
  if (strides[0] % 16 != 0 || strides[1] % strides[0] != 0 || strides[2] != strides[1] * sizes[2]) return 1;
  if (steps[0] != 1 || steps[3] != 1) return 1;
  *map = {static_cast<unsigned char const*>(from), 4,
          {int(sizes[0]), int(sizes[1]), int(sizes[2]), int(sizes[3])}, int(pixels), {lower[0], lower[1]},
          {upper[0], upper[1]}, {int(steps[1]), int(steps[2])}, int64_t(strides[0] / 2), int64_t(strides[1] / 2)};
  return 0;
}
}
