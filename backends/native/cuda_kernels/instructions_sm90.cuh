// The instructions of sm_90a: copies of whole tiles, barriers that count their bytes, and products of four warps. Tests put
// emulated ones in their place.
#ifndef AUTOTUNE_INSTRUCTIONS_SM90
#define AUTOTUNE_INSTRUCTIONS_SM90

#include "instructions.cuh"

namespace autotune {

constexpr int kBoxColumns = 64;  // 128 bytes of half precision

// A description of an operand in global memory for the copies of whole tiles: CUtensorMap of cuda.h, made by the driver.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// Whether a thread is the one of its warp that acts for it.
__device__ __forceinline__ bool is_chosen() {
  uint32_t chosen;
  asm volatile(
      "{\n"
      ".reg .pred found;\n"
      "elect.sync _|found, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, found;\n"
      "}\n"
      : "=r"(chosen));
  return chosen != 0;
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Lets the copies and the other blocks see barriers that were made.
__device__ __forceinline__ void barriers_are_made() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Arrives, and lets the barrier wait for so many bytes.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// The same of the barrier that lies there in another block of the cluster.
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Until the phase of this parity is over.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@over bra done;\n"
      "bra again;\n"
      "done:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Of some of a block's threads, which come in whole warps.
__device__ __forceinline__ void meet(int threads) { asm volatile("bar.sync 1, %0;\n" ::"r"(threads) : "memory"); }

// Two matrices of eight by eight, of which a thread has two neighbours of one row, or of one column (kTurned). The first
// eight threads give the addresses of one's rows, the next eight those of the other's.
template <bool kTurned>
__device__ __forceinline__ void store_matrices(uint32_t at, uint32_t const (&two)[2]) {
  if constexpr (kTurned) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(at), "r"(two[0]), "r"(two[1])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};\n" ::"r"(at), "r"(two[0]), "r"(two[1])
                 : "memory");
  }
}

template <bool kTurned>
__device__ __forceinline__ void load_two_matrices(uint32_t (&two)[2], uint32_t at) {
  if constexpr (kTurned) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n" : "=r"(two[0]), "=r"(two[1]) : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n" : "=r"(two[0]), "=r"(two[1]) : "r"(at)
                 : "memory");
  }
}

__device__ __forceinline__ void prefetch_map(TensorMap const* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// Into the L2 cache, and no farther.
__device__ __forceinline__ void prefetch_line(void const* at) { asm volatile("prefetch.global.L2 [%0];\n" ::"l"(at)); }

// A box of 64 columns of half precision, of as many rows as its map says; a row is 128 bytes, whose eight chunks are
// turned by the row.
__device__ __forceinline__ void copy_box(uint32_t to, TensorMap const* map, uint32_t barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}

// The same of images: from the pixel (x, y) of an image on, as many pixels as its map says in the order of a convolution's
// places, each moved by (right, down).
__device__ __forceinline__ void copy_pixels(uint32_t to, TensorMap const* map, uint32_t barrier, int channel, int x,
                                            int y, int image, int right, int down) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2], {%7, %8};\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(channel), "r"(x), "r"(y), "r"(image), "h"(static_cast<uint16_t>(right)),
      "h"(static_cast<uint16_t>(down))
      : "memory");
}

// Both to the same place of every block of the cluster that is in `blocks`, whose barriers count the bytes.
__device__ __forceinline__ void copy_box_to(uint32_t to, TensorMap const* map, uint32_t barrier, int column, int row,
                                            uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, %5}], "
      "[%2], %3;\n" ::"r"(to),
      "l"(map), "r"(barrier), "h"(blocks), "r"(column), "r"(row)
      : "memory");
}

__device__ __forceinline__ void copy_pixels_to(uint32_t to, TensorMap const* map, uint32_t barrier, int channel, int x,
                                               int y, int image, int right, int down, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, "
      "%5, %6, %7}], [%2], {%8, %9}, %3;\n" ::"r"(to),
      "l"(map), "r"(barrier), "h"(blocks), "r"(channel), "r"(x), "r"(y), "r"(image), "h"(static_cast<uint16_t>(right)),
      "h"(static_cast<uint16_t>(down))
      : "memory");
}

// Where a tile of such rows begins, as products read it: eight rows are 1024 bytes.
__device__ __forceinline__ uint64_t described(uint32_t tile) {
  return static_cast<uint64_t>((tile & 0x3ffff) >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

template <int kLeft>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kLeft) : "memory");
}

// 64 rows of one tile by kColumns rows of another, over 16 of their columns; `add` 0 forgets what was there.
template <class Element, int kColumns>
struct Product;

#define AUTOTUNE_P8 "%0, %1, %2, %3"
#define AUTOTUNE_P16 AUTOTUNE_P8 ", %4, %5, %6, %7"
#define AUTOTUNE_P24 AUTOTUNE_P16 ", %8, %9, %10, %11"
#define AUTOTUNE_P32 AUTOTUNE_P24 ", %12, %13, %14, %15"
#define AUTOTUNE_P40 AUTOTUNE_P32 ", %16, %17, %18, %19"
#define AUTOTUNE_P48 AUTOTUNE_P40 ", %20, %21, %22, %23"
#define AUTOTUNE_P56 AUTOTUNE_P48 ", %24, %25, %26, %27"
#define AUTOTUNE_P64 AUTOTUNE_P56 ", %28, %29, %30, %31"
#define AUTOTUNE_P72 AUTOTUNE_P64 ", %32, %33, %34, %35"
#define AUTOTUNE_P80 AUTOTUNE_P72 ", %36, %37, %38, %39"
#define AUTOTUNE_P88 AUTOTUNE_P80 ", %40, %41, %42, %43"
#define AUTOTUNE_P96 AUTOTUNE_P88 ", %44, %45, %46, %47"
#define AUTOTUNE_P104 AUTOTUNE_P96 ", %48, %49, %50, %51"
#define AUTOTUNE_P112 AUTOTUNE_P104 ", %52, %53, %54, %55"
#define AUTOTUNE_P120 AUTOTUNE_P112 ", %56, %57, %58, %59"
#define AUTOTUNE_P128 AUTOTUNE_P120 ", %60, %61, %62, %63"
#define AUTOTUNE_P136 AUTOTUNE_P128 ", %64, %65, %66, %67"
#define AUTOTUNE_P144 AUTOTUNE_P136 ", %68, %69, %70, %71"
#define AUTOTUNE_P152 AUTOTUNE_P144 ", %72, %73, %74, %75"
#define AUTOTUNE_P160 AUTOTUNE_P152 ", %76, %77, %78, %79"
#define AUTOTUNE_P168 AUTOTUNE_P160 ", %80, %81, %82, %83"
#define AUTOTUNE_P176 AUTOTUNE_P168 ", %84, %85, %86, %87"
#define AUTOTUNE_P184 AUTOTUNE_P176 ", %88, %89, %90, %91"
#define AUTOTUNE_P192 AUTOTUNE_P184 ", %92, %93, %94, %95"
#define AUTOTUNE_P200 AUTOTUNE_P192 ", %96, %97, %98, %99"
#define AUTOTUNE_P208 AUTOTUNE_P200 ", %100, %101, %102, %103"
#define AUTOTUNE_P216 AUTOTUNE_P208 ", %104, %105, %106, %107"
#define AUTOTUNE_P224 AUTOTUNE_P216 ", %108, %109, %110, %111"
#define AUTOTUNE_P232 AUTOTUNE_P224 ", %112, %113, %114, %115"
#define AUTOTUNE_P240 AUTOTUNE_P232 ", %116, %117, %118, %119"
#define AUTOTUNE_P248 AUTOTUNE_P240 ", %120, %121, %122, %123"
#define AUTOTUNE_P256 AUTOTUNE_P248 ", %124, %125, %126, %127"
#define AUTOTUNE_SUMS(at) "+f"(sums[at]), "+f"(sums[at + 1]), "+f"(sums[at + 2]), "+f"(sums[at + 3])
#define AUTOTUNE_R8 AUTOTUNE_SUMS(0)
#define AUTOTUNE_R16 AUTOTUNE_R8, AUTOTUNE_SUMS(4)
#define AUTOTUNE_R24 AUTOTUNE_R16, AUTOTUNE_SUMS(8)
#define AUTOTUNE_R32 AUTOTUNE_R24, AUTOTUNE_SUMS(12)
#define AUTOTUNE_R40 AUTOTUNE_R32, AUTOTUNE_SUMS(16)
#define AUTOTUNE_R48 AUTOTUNE_R40, AUTOTUNE_SUMS(20)
#define AUTOTUNE_R56 AUTOTUNE_R48, AUTOTUNE_SUMS(24)
#define AUTOTUNE_R64 AUTOTUNE_R56, AUTOTUNE_SUMS(28)
#define AUTOTUNE_R72 AUTOTUNE_R64, AUTOTUNE_SUMS(32)
#define AUTOTUNE_R80 AUTOTUNE_R72, AUTOTUNE_SUMS(36)
#define AUTOTUNE_R88 AUTOTUNE_R80, AUTOTUNE_SUMS(40)
#define AUTOTUNE_R96 AUTOTUNE_R88, AUTOTUNE_SUMS(44)
#define AUTOTUNE_R104 AUTOTUNE_R96, AUTOTUNE_SUMS(48)
#define AUTOTUNE_R112 AUTOTUNE_R104, AUTOTUNE_SUMS(52)
#define AUTOTUNE_R120 AUTOTUNE_R112, AUTOTUNE_SUMS(56)
#define AUTOTUNE_R128 AUTOTUNE_R120, AUTOTUNE_SUMS(60)
#define AUTOTUNE_R136 AUTOTUNE_R128, AUTOTUNE_SUMS(64)
#define AUTOTUNE_R144 AUTOTUNE_R136, AUTOTUNE_SUMS(68)
#define AUTOTUNE_R152 AUTOTUNE_R144, AUTOTUNE_SUMS(72)
#define AUTOTUNE_R160 AUTOTUNE_R152, AUTOTUNE_SUMS(76)
#define AUTOTUNE_R168 AUTOTUNE_R160, AUTOTUNE_SUMS(80)
#define AUTOTUNE_R176 AUTOTUNE_R168, AUTOTUNE_SUMS(84)
#define AUTOTUNE_R184 AUTOTUNE_R176, AUTOTUNE_SUMS(88)
#define AUTOTUNE_R192 AUTOTUNE_R184, AUTOTUNE_SUMS(92)
#define AUTOTUNE_R200 AUTOTUNE_R192, AUTOTUNE_SUMS(96)
#define AUTOTUNE_R208 AUTOTUNE_R200, AUTOTUNE_SUMS(100)
#define AUTOTUNE_R216 AUTOTUNE_R208, AUTOTUNE_SUMS(104)
#define AUTOTUNE_R224 AUTOTUNE_R216, AUTOTUNE_SUMS(108)
#define AUTOTUNE_R232 AUTOTUNE_R224, AUTOTUNE_SUMS(112)
#define AUTOTUNE_R240 AUTOTUNE_R232, AUTOTUNE_SUMS(116)
#define AUTOTUNE_R248 AUTOTUNE_R240, AUTOTUNE_SUMS(120)
#define AUTOTUNE_R256 AUTOTUNE_R248, AUTOTUNE_SUMS(124)

#define AUTOTUNE_PRODUCT(ELEMENT, TYPE, N, A, B, ADD)                                                                  \
  template <>                                                                                                          \
  struct Product<ELEMENT, N> {                                                                                         \
    static __device__ __forceinline__ void run(float (&sums)[N / 2], uint64_t a, uint64_t b, int add) {                \
      asm volatile(                                                                                                    \
          "{\n.reg .pred adds;\nsetp.ne.b32 adds, " ADD ", 0;\n"                                                       \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" AUTOTUNE_P##N "}, " A ", " B              \
          ", adds, 1, 1, 0, 0;\n}\n"                                                                                   \
          : AUTOTUNE_R##N                                                                                              \
          : "l"(a), "l"(b), "r"(add));                                                                                 \
    }                                                                                                                  \
  };
#define AUTOTUNE_PRODUCTS(N, A, B, ADD)               \
  AUTOTUNE_PRODUCT(Half, "f16", N, A, B, ADD)       \
  AUTOTUNE_PRODUCT(Bfloat16, "bf16", N, A, B, ADD)

AUTOTUNE_PRODUCTS(8, "%4", "%5", "%6")
AUTOTUNE_PRODUCTS(16, "%8", "%9", "%10")
AUTOTUNE_PRODUCTS(24, "%12", "%13", "%14")
AUTOTUNE_PRODUCTS(32, "%16", "%17", "%18")
AUTOTUNE_PRODUCTS(40, "%20", "%21", "%22")
AUTOTUNE_PRODUCTS(48, "%24", "%25", "%26")
AUTOTUNE_PRODUCTS(56, "%28", "%29", "%30")
AUTOTUNE_PRODUCTS(64, "%32", "%33", "%34")
AUTOTUNE_PRODUCTS(72, "%36", "%37", "%38")
AUTOTUNE_PRODUCTS(80, "%40", "%41", "%42")
AUTOTUNE_PRODUCTS(88, "%44", "%45", "%46")
AUTOTUNE_PRODUCTS(96, "%48", "%49", "%50")
AUTOTUNE_PRODUCTS(104, "%52", "%53", "%54")
AUTOTUNE_PRODUCTS(112, "%56", "%57", "%58")
AUTOTUNE_PRODUCTS(120, "%60", "%61", "%62")
AUTOTUNE_PRODUCTS(128, "%64", "%65", "%66")
AUTOTUNE_PRODUCTS(136, "%68", "%69", "%70")
AUTOTUNE_PRODUCTS(144, "%72", "%73", "%74")
AUTOTUNE_PRODUCTS(152, "%76", "%77", "%78")
AUTOTUNE_PRODUCTS(160, "%80", "%81", "%82")
AUTOTUNE_PRODUCTS(168, "%84", "%85", "%86")
AUTOTUNE_PRODUCTS(176, "%88", "%89", "%90")
AUTOTUNE_PRODUCTS(184, "%92", "%93", "%94")
AUTOTUNE_PRODUCTS(192, "%96", "%97", "%98")
AUTOTUNE_PRODUCTS(200, "%100", "%101", "%102")
AUTOTUNE_PRODUCTS(208, "%104", "%105", "%106")
AUTOTUNE_PRODUCTS(216, "%108", "%109", "%110")
AUTOTUNE_PRODUCTS(224, "%112", "%113", "%114")
AUTOTUNE_PRODUCTS(232, "%116", "%117", "%118")
AUTOTUNE_PRODUCTS(240, "%120", "%121", "%122")
AUTOTUNE_PRODUCTS(248, "%124", "%125", "%126")
AUTOTUNE_PRODUCTS(256, "%128", "%129", "%130")

}  // namespace autotune

#endif
