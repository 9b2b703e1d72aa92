// Descriptions of operands in global memory for the copies of whole tiles, made on the host by the driver. Tests put
// emulated ones in their place.
#ifndef AUTOTUNE_TENSOR_MAPS
#define AUTOTUNE_TENSOR_MAPS

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "epilogue.cuh"

namespace autotune {

constexpr int kBoxColumns = 64;  // 128 bytes of half precision

template <class Element>
constexpr CUtensorMapDataType kMapped = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
template <>
constexpr CUtensorMapDataType kMapped<__nv_bfloat16> = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;

template <class Function>
Function driver_function(char const* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult said;
  if (cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &said) != cudaSuccess) return nullptr;
  return said == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(found) : nullptr;
}

// A packed matrix, in boxes of some rows; what lies outside is zeros. Zero, or an error of the driver.
template <class Element>
int map_rows(CUtensorMap* map, void const* from, int rows, int columns, int box_rows) {
  static auto const encode = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  if (encode == nullptr) return CUDA_ERROR_NOT_FOUND;
  cuuint64_t const sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  cuuint64_t const strides[] = {static_cast<cuuint64_t>(columns) * sizeof(Element)};
  cuuint32_t const box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  return encode(map, kMapped<Element>, 2, const_cast<void*>(from), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// The images of an order's window, in boxes of some pixels in the order of the convolution's places. From one pixel to the next
// it is `pixel` elements, from one row to the next `row`: fewer than channels where neighbours overlap.
template <class Element>
int map_window(CUtensorMap* map, Order const& order, int64_t pixel, int64_t row, int box_pixels) {
  static auto const encode = driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  if (encode == nullptr) return CUDA_ERROR_NOT_FOUND;
  int const images = order.m / (order.places_h * order.places_w), taps = order.k / order.channels;
  int const kernel_h = taps / order.kernel_w;
  auto const size = [](int64_t of) { return static_cast<cuuint64_t>(of); };
  cuuint64_t const sizes[] = {size(order.channels), size(order.width), size(order.height), size(images)};
  cuuint64_t const strides[] = {size(pixel) * sizeof(Element), size(row) * sizeof(Element),
                                size(row * order.height) * sizeof(Element)};
  int const lower[] = {-order.padding_w, -order.padding_h};
  // The last place of the kernel's upper left corner, counted from the last pixel.
  int const upper[] = {order.padding_w - (order.kernel_w - 1) * order.dilation_w,
                       order.padding_h - (kernel_h - 1) * order.dilation_h};
  cuuint32_t const steps[] = {1, static_cast<cuuint32_t>(order.stride_w), static_cast<cuuint32_t>(order.stride_h), 1};
  return encode(map, kMapped<Element>, 4, const_cast<void*>(order.a), sizes, strides, lower, upper, kBoxColumns,
                box_pixels, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace autotune

#endif
