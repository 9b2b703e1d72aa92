// What our GEMMs have in common: what they are told, and how sums become results.
//
// D = activation(A * B + bias + residual). A is row-major (M by K), B is column-major (K by N, a weight as torch keeps
// it), D and the residual are row-major (M by N), all packed. Rows of A and B are multiples of 16 bytes. Accumulators are
// fp32. Without a bias, or without a residual, its pointer is null. With a window the rows of A are read from images in
// channels-last memory, of which a place outside holds zeros: a convolution.
#pragma once

#include <cstdint>

#include "instructions.cuh"

namespace autotune {

// What passes between Python and a compiled kernel: kind.py has the same structures. `activation`: 0 none, 1 ReLU, 2
// GELU with erf, 3 GELU with tanh, 4 SiLU.
struct Order {
  void const* a;
  void const* b;
  float const* bias;
  void const* residual;
  void* d;
  int m, n, k;
  int activation;
  // Whether the launch may begin before the one before it in the stream has ended. Then B and the bias are constants.
  int early;
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

// Of a result in half precision the activation is off by 2.6e-4 of x at most, half of what rounding x costs: the hardware's
// tanh is off by 2^-11, and erf(x / sqrt 2) = tanh(x P(x^2)) with this P within 1.9e-5 (fitted; beyond 4 both are 1).
template <class Output, int kActivation>
__device__ __forceinline__ float activated(float x) {
  constexpr bool kExact = sizeof(Output) == 4;
  if constexpr (kActivation == 1) {
    return x < 0.0f ? 0.0f : x;  // NaN stays
  } else if constexpr (kActivation == 2 && kExact) {
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  } else if constexpr (kActivation == 2) {
    float const square = fminf(x * x, 16.0f), half = 0.5f * x;
    float const inner = x * ((-0.00031594865f * square + 0.036798727f) * square + 0.79771757f);
    return half * fast_tanh(inner) + half;
  } else if constexpr (kActivation == 3 && kExact) {  // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
    return x / (1.0f + __expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
  } else if constexpr (kActivation == 3) {
    float const half = 0.5f * x;
    return half * fast_tanh(x * (0.035677408f * x * x + 0.7978845608f)) + half;
  } else if constexpr (kActivation == 4 && kExact) {
    return x / (1.0f + __expf(-x));
  } else if constexpr (kActivation == 4) {
    float const half = 0.5f * x;
    return half * fast_tanh(half) + half;
  } else {
    return x;
  }
}

// Hands results of the type `Output` out: kVector neighbours of a row at a time, from sums in fp32.
template <class Output>
struct Epilogue {
  // A block's part of a tile whose sums lie in shared memory, kPitch floats from one row to the next: all of it, or the
  // share of this block where the tile's sums are spread over the blocks of a cluster. `thread` of `threads` take part.
  template <int kM, int kN, int kPitch>
  static __device__ __forceinline__ void hand_out(Order const& order, Cluster const& cluster, float* own, int first_m,
                                                  int first_n, int split, int splits, int thread, int threads) {
    auto const by = [&](auto finish) {
      constexpr int kItems = kM * kN / kVector, kTogether = decltype(finish)::kTogether;
#pragma unroll 1
      for (int first = split * threads + thread; first < kItems; first += kTogether * splits * threads) {
        alignas(16) Output residual[kTogether][kVector];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          int const item = first + i * splits * threads;
          int const row = first_m + item / (kN / kVector), column = first_n + item % (kN / kVector) * kVector;
          if (item < kItems && row < order.m && column < order.n) finish.ask(residual[i], row, column);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          int const item = first + i * splits * threads;
          int const row = item / (kN / kVector), column = item % (kN / kVector) * kVector;
          if (item >= kItems || first_m + row >= order.m || first_n + column >= order.n) continue;
          float total[kVector];
          read(total, cluster.of(own, 0) + row * kPitch + column);
#pragma unroll 1
          for (int other = 1; other < splits; ++other) {
            float part[kVector];
            read(part, cluster.of(own, other) + row * kPitch + column);
#pragma unroll
            for (int j = 0; j < kVector; ++j) total[j] += part[j];
          }
          finish(residual[i], first_m + row, first_n + column, total);
        }
      }
    };
    if (order.n % kVector != 0) return by(Some{order});
    bool const adds = order.residual != nullptr;
    switch (order.activation) {
      case 1: return adds ? by(All<1, true>{order}) : by(All<1, false>{order});
      case 2: return adds ? by(All<2, true>{order}) : by(All<2, false>{order});
      case 3: return adds ? by(All<3, true>{order}) : by(All<3, false>{order});
      case 4: return adds ? by(All<4, true>{order}) : by(All<4, false>{order});
      default: return adds ? by(All<0, true>{order}) : by(All<0, false>{order});
    }
  }

 private:
  static __device__ __forceinline__ void read(float (&to)[kVector], float const* from) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      float4 const four = *reinterpret_cast<float4 const*>(from + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  }

  // Where rows are multiples of a vector.
  template <int kActivation, bool kResidual>
  struct All {
    static constexpr int kTogether = kResidual ? 4 : 1;  // places in hand, so that memory is waited for once for all

    Order const& order;

    __device__ __forceinline__ void ask(Output (&residual)[kVector], int row, int column) const {
      if constexpr (kResidual) {
        vectors(residual, static_cast<Output const*>(order.residual) + static_cast<int64_t>(row) * order.n + column);
      }
    }

    __device__ __forceinline__ void operator()(Output (&kept)[kVector], int row, int column,
                                               float (&total)[kVector]) const {
      if (order.bias != nullptr) {
        float bias[kVector];
        read(bias, order.bias + column);
#pragma unroll
        for (int i = 0; i < kVector; ++i) total[i] += bias[i];
      }
      if constexpr (kResidual) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) total[i] += as_float(kept[i]);
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) kept[i] = rounded<Output>(activated<Output, kActivation>(total[i]));
      vectors(static_cast<Output*>(order.d) + static_cast<int64_t>(row) * order.n + column, kept);
    }
  };

  // Where they are none, so that some of a vector's results may lie outside, and none is aligned.
  struct Some {
    static constexpr int kTogether = 1;

    Order const& order;

    __device__ __forceinline__ void ask(Output (&)[kVector], int, int) const {}

    __device__ __forceinline__ void operator()(Output (&)[kVector], int row, int column, float (&total)[kVector]) const {
      int64_t const at = static_cast<int64_t>(row) * order.n + column;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (column + i >= order.n) break;
        float value = total[i];
        if (order.bias != nullptr) value += order.bias[column + i];
        if (order.residual != nullptr) value += as_float(static_cast<Output const*>(order.residual)[at + i]);
        switch (order.activation) {
          case 1: value = activated<Output, 1>(value); break;
          case 2: value = activated<Output, 2>(value); break;
          case 3: value = activated<Output, 3>(value); break;
          case 4: value = activated<Output, 4>(value); break;
        }
        static_cast<Output*>(order.d)[at + i] = rounded<Output>(value);
      }
    }
  };

  static __device__ __forceinline__ void vectors(Output* to, Output const* from) {
#pragma unroll
    for (int i = 0; i < kVector * int(sizeof(Output)) / 16; ++i) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<uint4 const*>(from)[i];
    }
  }
};

// Zero, or one of cudaError_t; the launch is in the stream when this returns. The grid is of whole clusters.
template <class Given>
int launch_clusters(void (*kernel)(Given const), Given const& given, dim3 grid, dim3 blocks, int threads, int shared,
                    bool early, cudaStream_t stream) {
  if (shared > kSharedWithoutAsking) {
    auto const set = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (set != cudaSuccess) return static_cast<int>(set);
  }
  cudaLaunchConfig_t how = {};
  how.gridDim = grid;
  how.blockDim = dim3(threads);
  how.dynamicSmemBytes = shared;
  how.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  if (blocks.x * blocks.y * blocks.z > 1) {
    auto& cluster = attributes[how.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = blocks.x;
    cluster.val.clusterDim.y = blocks.y;
    cluster.val.clusterDim.z = blocks.z;
  }
  if (early) {
    auto& overlap = attributes[how.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  how.attrs = attributes;
  return static_cast<int>(cudaLaunchKernelEx(&how, kernel, given));
}

template <class Kernel>
int made(Kernel kernel, int shared, Made* told) {
  cudaFuncAttributes found;
  if (auto const error = cudaFuncGetAttributes(&found, kernel); error != cudaSuccess) return static_cast<int>(error);
  *told = {found.numRegs, static_cast<int>(found.localSizeBytes), shared};
  return 0;
}

}  // namespace autotune
