// The instructions that the kernels of this folder are made of. Tests put emulated ones in their place.
#ifndef AUTOTUNE_INSTRUCTIONS
#define AUTOTUNE_INSTRUCTIONS

namespace autotune {

// NVRTC has no standard headers, and a kernel that includes none compiles without any.
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int64_t = long long;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;

template <class One, class Other>
constexpr bool kSame = false;
template <class Type>
constexpr bool kSame<Type, Type> = true;

// Half precision, as bits.
struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(Half value) {
  float answer;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(answer) : "h"(value.bits));
  return answer;
}
__device__ __forceinline__ float as_float(Bfloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

template <class Output>
__device__ __forceinline__ Output rounded(float value);
template <>
__device__ __forceinline__ float rounded<float>(float value) { return value; }
template <>
__device__ __forceinline__ Half rounded<Half>(float value) {
  Half answer;
  asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(answer.bits) : "f"(value));
  return answer;
}
template <>
__device__ __forceinline__ Bfloat16 rounded<Bfloat16>(float value) {
  Bfloat16 answer;
  asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(answer.bits) : "f"(value));
  return answer;
}

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char shared[];
  return shared;
}

__device__ __forceinline__ uint32_t shared_address(void const* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// The blocks of a cluster; before sm_90 there is one alone. Those that share k out among themselves have every `step`th rank
// from `first` on.
struct Cluster {
  int first = 0, step = 1;
#if __CUDA_ARCH__ >= 900
  // Until all threads are here, and what they wrote into shared memory is seen. All of a warp come together.
  __device__ __forceinline__ void sync() const {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
  }
  // The same without an eye on what anybody wrote: a fence would wait for what is on its way to global memory.
  __device__ __forceinline__ void meet() const {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;\n" ::: "memory");
  }
  // What lies in the shared memory of another one of those where `own` lies in this one's.
  __device__ __forceinline__ float const* of(float* own, int other) const {
    uint64_t there;
    asm("mapa.u64 %0, %1, %2;\n" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(own)), "r"(first + other * step));
    return reinterpret_cast<float const*>(there);
  }
#else
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void meet() const { __syncthreads(); }
  __device__ __forceinline__ float const* of(float* own, int) const { return own; }
#endif
};

// With these a launch may begin while the one before it in the stream still works; before sm_90 none does.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Until the launches before this one have ended and all they wrote is there.
__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// A number that is the same in all threads of a warp, so that the compiler knows it.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffff, value, 0); }

__device__ __forceinline__ float fast_tanh(float x) {
  float answer;
  asm("tanh.approx.f32 %0, %1;\n" : "=f"(answer) : "f"(x));
  return answer;
}

// Zero to `top`, but NaN stays.
__device__ __forceinline__ float clamped(float x, float top) {
  float answer;
  asm("max.NaN.f32 %0, %1, 0f00000000;\n" : "=f"(answer) : "f"(x));
  asm("min.NaN.f32 %0, %0, %1;\n" : "+f"(answer) : "f"(top));
  return answer;
}

__device__ __forceinline__ void copy_ahead(uint32_t to, void const* from, bool there) {
  int const bytes = there ? 16 : 0;  // the rest is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes));
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;\n" ::); }

template <int kLeft>
__device__ __forceinline__ void wait_for_all_but() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft));
}

__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

// Two neighbours as one, rounded, and back.
template <class Element>
__device__ __forceinline__ uint32_t paired(float first, float second) {
  uint32_t both;
  if constexpr (sizeof(Element) == 4) {
    both = 0;
  } else if constexpr (kSame<Element, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(second), "f"(first));
  }
  return both;
}

template <class Element>
__device__ __forceinline__ float2 unpaired(uint32_t both) {
  if constexpr (kSame<Element, Half>) {
    return make_float2(as_float(Half{static_cast<uint16_t>(both)}), as_float(Half{static_cast<uint16_t>(both >> 16)}));
  } else {
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
  }
}

template <class Element>
__device__ __forceinline__ void multiply(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply<Half>(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply<Bfloat16>(float (&c)[4], uint32_t const (&a)[4], uint32_t b0,
                                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace autotune

#endif
