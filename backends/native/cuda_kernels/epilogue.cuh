// What our GEMMs have in common: what they are told, and how sums become results.
//
// D = activation(A * B + bias + residual). A is row-major (M by K), B is column-major (K by N, a weight as torch keeps
// it), D and the residual are row-major (M by N), all packed. Rows of A and B are multiples of 16 bytes. Accumulators are
// fp32. Without a bias, or without a residual, its pointer is null. With a window the rows of A are read from images in
// channels-last memory, of which a place outside holds zeros: a convolution.
#pragma once

#include "instructions.cuh"

namespace autotune {

// What passes from Python to a kernel: launch_arguments.py has the same structures.
enum Formula : int { kNone, kRelu, kClamp, kTimesClamp, kBend, kTimesBend, kErf };

// The function between the sums and the results, by one of these formulas, so that a new function needs no new kernel:
// kClamp: c = clamp(scale x + shift, 0, top), kTimesClamp: x c; kBend: b = gain tanh(u) + offset, u = x (p0 + s (p1 + s p2)),
// s = min(x^2, most), kTimesBend: x (tanh(u) + 1) / 2; kErf: GELU by erf, for results in fp32 alone. NaN stays NaN.
struct Activation {
  Formula formula;
  float scale, shift, top;
  float p0, p1, p2, most, gain, offset;
};

struct Order {
  void const* a;
  void const* b;
  float const* bias;
  void const* residual;
  void* d;
  int m, n, k;
  // Whether the launch may begin before the one before it in the stream has ended. Then B and the bias are constants.
  int early;
  // Of a window; k goes over the rows of its kernel, then the columns, then the channels, whose number is a multiple of 8.
  int height, width, channels;
  int kernel_w;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int places_h, places_w;
  Activation activation;
};

constexpr int kVector = 8;  // elements of 16 bytes

// Of a result in half precision the activation is off by 2.6e-4 of x at most, half of what rounding x costs: the hardware's
// tanh is off by 2^-11, and GELU's erf(x / sqrt 2) = tanh(x P(x^2)) with a P within 1.9e-5 (fitted; beyond 4 both are 1).
template <class Output, int kFormula>
__device__ __forceinline__ float activated(Activation const& by, float x) {
  if constexpr (kFormula == kRelu) {
    return x < 0.0f ? 0.0f : x;
  } else if constexpr (kFormula == kClamp || kFormula == kTimesClamp) {
    float const share = clamped(by.scale * x + by.shift, by.top);
    return kFormula == kTimesClamp ? x * share : share;
  } else if constexpr (kFormula == kBend || kFormula == kTimesBend) {
    float const square = fminf(x * x, by.most), inner = x * ((by.p2 * square + by.p1) * square + by.p0);
    float bent;
    if constexpr (sizeof(Output) == 4) {
      bent = 1.0f - 2.0f / (1.0f + __expf(2.0f * inner));
    } else {
      bent = fast_tanh(inner);
    }
    if constexpr (kFormula == kBend) return by.gain * bent + by.offset;
    float const half = 0.5f * x;
    return half * bent + half;
  } else if constexpr (kFormula == kErf) {
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  } else {
    return x;
  }
}

template <class Output, int kFormula>
struct Applied {
  Activation const& by;

  __device__ __forceinline__ float operator()(float x) const { return activated<Output, kFormula>(by, x); }
};

// The others are called: with all of them in the code of a kernel, ptxas gives its main loop other registers, and tiles of
// gemm_cluster.cuh took up to twice as long.
template <class Output>
__device__ __noinline__ float rarely_activated(Activation const& by, float x) {
  if (by.formula == kBend) return activated<Output, kBend>(by, x);
  return by.formula == kClamp ? activated<Output, kClamp>(by, x) : activated<Output, kTimesClamp>(by, x);
}

template <class Output>
struct RarelyApplied {
  Activation const& by;

  __device__ __forceinline__ float operator()(float x) const { return rarely_activated<Output>(by, x); }
};

// Calls `use` with a function that applies the activation: one of a few pieces of code, each for all of a thread's values.
template <class Output, class Use>
__device__ __forceinline__ void with_frequent_activation(Activation const& by, Use use) {
  if (by.formula == kRelu) use(Applied<Output, kRelu>{by});
  if (by.formula == kTimesBend) use(Applied<Output, kTimesBend>{by});
}

template <class Output, class Use>
__device__ __forceinline__ void with_activation(Activation const& by, Use use) {
  switch (by.formula) {
    case kRelu: use(Applied<Output, kRelu>{by}); break;
    case kClamp:
    case kTimesClamp:
    case kBend: use(RarelyApplied<Output>{by}); break;
    case kTimesBend: use(Applied<Output, kTimesBend>{by}); break;
    case kErf:
      if constexpr (sizeof(Output) == 4) use(Applied<Output, kErf>{by});
      break;
    case kNone: break;
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
    if (order.residual != nullptr) return by(All<true>{order});
    by(All<false>{order});
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
  template <bool kResidual>
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
      with_activation<Output>(order.activation, [&](auto apply) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) total[i] = apply(total[i]);
      });
#pragma unroll
      for (int i = 0; i < kVector; ++i) kept[i] = rounded<Output>(total[i]);
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
        with_activation<Output>(order.activation, [&](auto apply) { value = apply(value); });
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

}  // namespace autotune
