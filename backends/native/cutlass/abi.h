// What passes between Python and a compiled kernel: kernel.py has the same structures.
#pragma once

namespace autotune {

// What is set for each launch. `raster`: 0 heuristic, 1 along M, 2 along N. The last three count where the scheduler is
// stream-K: `splits` of K, `decomposition` 0 heuristic, 1 data-parallel, 2 split-K, 3 stream-K, `reduction` 0
// deterministic, 1 in any order. `early`: from sm_90 on the launch may begin before the one before it in the stream has ended.
struct Launch {
  int m, n, k;
  int swizzle, raster;
  int splits, decomposition, reduction;
  int early;
};

struct Operands {
  void const* a;
  void const* b;
  void const* residual;
  float const* bias;
  void* d;
};

// What the compiler made of a kernel, in bytes but for the registers of a thread.
struct Made {
  int registers, spilled, shared, stages;
};

}  // namespace autotune
