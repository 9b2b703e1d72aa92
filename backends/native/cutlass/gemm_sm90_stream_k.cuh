// The GEMM of gemm_sm90.cuh for CUTLASS's stream-K scheduler, whose launches begin when the ones before them have ended.
#pragma once

#define AUTOTUNE_LAUNCHES_IN_TURN 1

#include "gemm_sm90.cuh"
