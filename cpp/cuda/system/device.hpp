// The interface of kernels to the machine: threads of a block; warp, block and cluster barriers; tensor cores; and memory that
// other blocks write concurrently. nvcc compiles it for the GPU. With other compilers, stand_in.hpp runs the same kernels on
// the CPU, so that their logic is tested without a GPU. Blocks are one-dimensional; shared memory is dynamic, and each kernel
// divides its own.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../../number.hpp"
#include "types.hpp"
#define TT_DEVICE __device__ __forceinline__
#define TT_KERNEL __global__
#define TT_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#else
#include <stand_in.hpp>
#include "types.hpp"
#endif

namespace throughtime::cuda {

constexpr int warp_size = 32;

#if defined(__CUDACC__)

TT_DEVICE int thread() { return int(threadIdx.x); }
TT_DEVICE int threads() { return int(blockDim.x); }
TT_DEVICE int block() { return int(blockIdx.x); }
TT_DEVICE int block_y() { return int(blockIdx.y); }
TT_DEVICE int blocks() { return int(gridDim.x); }

TT_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

TT_DEVICE void sync_block() { __syncthreads(); }
TT_DEVICE void sync_warp() { __syncwarp(); }

template <class T>
TT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
TT_DEVICE bool any_of_warp(bool value) { return __any_sync(0xffffffffu, value); }

// Barrier of a cluster, whose blocks are neighbours in x. Writes before `arrive` are visible after `wait`.
#if __CUDA_ARCH__ >= 900
TT_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
TT_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Stores into the shared memory of block `rank` of the cluster, at the offset that `own` has in this block's.
TT_DEVICE void store_remote(uint4* own, int rank, uint4 value) {
  asm volatile(
      "{ .reg .u32 far; mapa.shared::cluster.u32 far, %0, %1; st.shared::cluster.v4.u32 [far], {%2, %3, %4, %5}; }" ::"r"(
          uint32_t(__cvta_generic_to_shared(own))),
      "r"(rank), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
      : "memory");
}
#else  // no clusters: one block each
TT_DEVICE void cluster_arrive() {}
TT_DEVICE void cluster_wait() { __syncthreads(); }
TT_DEVICE void store_remote(uint4* own, int, uint4 value) { *own = value; }
#endif

// Relaxed accesses to memory that other blocks write concurrently; they bypass L1. Words of four bytes do not tear.
TT_DEVICE uint2 load_relaxed(const uint2* from) {
  uint2 value;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from) : "memory");
  return value;
}
TT_DEVICE uint4 load_relaxed(const uint4* from) {
  uint4 value;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from)
               : "memory");
  return value;
}
TT_DEVICE void store_relaxed(uint4* to, uint4 value) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}
TT_DEVICE void store_relaxed(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
TT_DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Loads data that is read only once, without evicting other data from L1.
TT_DEVICE uint4 load_once(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}
template <class T>
TT_DEVICE T load_once(const T* from) {
  return *from;
}

// This thread's asynchronous copies from memory into shared memory, in groups. `copies_wait` returns when all but the last
// `left` groups have arrived. This thread then sees them; other threads see them after a barrier.
TT_DEVICE void copy_async(uint4* to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
TT_DEVICE void copy_async(uint32_t* to, const uint32_t* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
TT_DEVICE void copy_async(uint16_t* to, const uint16_t* from) { *to = *from; }  // cp.async copies at least 4 bytes
TT_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
TT_DEVICE void copies_wait(int left) {
  if (left <= 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
  else if (left == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
  else if (left == 2) asm volatile("cp.async.wait_group 2;" ::: "memory");
  else asm volatile("cp.async.wait_group 3;" ::: "memory");
}

TT_DEVICE void pause() {}  // between two polls of memory that another block will write

TT_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
TT_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

TT_DEVICE float to_float(BFloat16 value) { return float_of(uint32_t(value.bits) << 16); }
TT_DEVICE float to_float(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
TT_DEVICE void from_float(float value, BFloat16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
TT_DEVICE void from_float(float value, Float16& to) { to.bits = __half_as_ushort(__float2half_rn(value)); }

#define TT_MULTIPLY_ADD(type)                                               \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])             \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y))

// c += a b on the tensor cores: a (16, 16) row-major, b (16, 8) column-major, c (16, 8), each spread over the warp as PTX
// defines for mma.m16n8k16. All lanes take part.
template <class S>
TT_DEVICE void multiply_add(float (&c)[4], uint4 a, uint2 b) {
  if constexpr (__is_same(S, Float16)) TT_MULTIPLY_ADD("f16");
  else TT_MULTIPLY_ADD("bf16");
}
#undef TT_MULTIPLY_ADD

#else

float to_float(BFloat16);
float to_float(Float16);
void from_float(float, BFloat16&);  // to the nearest, even at ties; a NaN is 0x7fff
void from_float(float, Float16&);

template <class S>
TT_DEVICE void multiply_add(float (&c)[4], uint4 a, uint2 b) {
  const uint32_t words[6] = {a.x, a.y, a.z, a.w, b.x, b.y};
  const auto* shown = show(words);
  const auto number = [](const uint32_t& word, int half) { return to_float(S{uint16_t(word >> 16 * half)}); };
  const int lane = stand_in::self->lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int of_a = row % 8 * 4 + k % 8 / 2, of_b = column * 4 + k % 8 / 2;
      c[i] += number(shown[of_a][row / 8 + k / 8 * 2], k % 2) * number(shown[of_b][4 + k / 8], k % 2);
    }
    if (c[i] != c[i]) c[i] = float_of(0xffffffff);  // the worst NaN: the one that marks unwritten memory
  }
}

#endif

TT_DEVICE float to_float(float value) { return value; }
TT_DEVICE void from_float(float value, float& to) { to = value; }

}  // namespace throughtime::cuda
