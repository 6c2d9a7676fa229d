// The runtime on a GPU. cuBLAS is not linked, so that the extension needs only the driver: load_blas finds it among the
// libraries that the process has loaded (torch loads one), or in the library that it is given.
#include "runtime.hpp"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <mutex>
#include <stdexcept>
#include <unordered_map>

namespace throughtime::cuda {

void check(int error, const char* what) {
  if (!error) return;
  cudaGetLastError();  // clears the error for the next call
  const auto code = cudaError_t(error);
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(code));
}

int current_device() {
  int id;
  check(cudaGetDevice(&id), "device");
  return id;
}

namespace {

Device describe(int id) {
  cudaDeviceProp of;
  check(cudaGetDeviceProperties(&of, id), "device");
  const int capability = of.major * 10 + of.minor;
  // With non-portable cluster sizes the chip allows 16 blocks instead of 8.
  return {of.name, of.multiProcessorCount, capability, int64_t(of.sharedMemPerBlockOptin), capability >= 90 ? 16 : 1};
}

// One object per device, made at its first use.
template <class T, class Make>
T& of_current(const Make& make) {
  static std::mutex mutex;
  static std::unordered_map<int, T> all;
  const int id = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = all.find(id);
  return found != all.end() ? found->second : all.emplace(id, make(id)).first->second;
}

// The device's memory pool. It keeps freed memory; otherwise every call would allocate it from the system again.
cudaMemPool_t pool() {
  return of_current<cudaMemPool_t>([](int id) {
    cudaMemPool_t own;
    check(cudaDeviceGetDefaultMemPool(&own, id), "memory pool");
    uint64_t all = UINT64_MAX;
    check(cudaMemPoolSetAttribute(own, cudaMemPoolAttrReleaseThreshold, &all), "memory pool");
    return own;
  });
}

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

}  // namespace

const bool is_stand_in = false;
const Device& device() { return of_current<Device>(describe); }

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) cudaGetLastError(), count = 0;
  return count;
}

void* allocate(size_t bytes, Stream stream) {
  void* block;
  check(cudaMallocFromPoolAsync(&block, bytes, pool(), handle(stream)), "memory");
  return block;
}
void release(void* block, Stream stream) { cudaFreeAsync(block, handle(stream)); }

void copy(void* to, const void* from, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle(stream)), "copy");
}
void fill(void* to, uint8_t byte, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemsetAsync(to, byte, bytes, handle(stream)), "fill");
}
void synchronise(Stream stream) { check(cudaStreamSynchronize(handle(stream)), "the work before"); }
void empty_cache() { check(cudaMemPoolTrimTo(pool(), 0), "memory pool"); }

Stream side_stream() {
  return {of_current<cudaStream_t>([](int) {
    cudaStream_t made;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "stream");
    return made;
  })};
}

void wait(Stream stream, Stream earlier) {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  check(cudaEventRecord(event, handle(earlier)), "event");
  check(cudaStreamWaitEvent(handle(stream), event, 0), "event");
  check(cudaEventDestroy(event), "event");  // takes effect after the event has completed
}

namespace {

// Declarations of cuBLAS's header, unchanged since version 11.
struct Blas {
  using Create = int (*)(void**);
  using SetStream = int (*)(void*, cudaStream_t);
  using SetWorkspace = int (*)(void*, void*, size_t);
  using SetMathMode = int (*)(void*, int);
  using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*,
                       void*, int, int, int, int);
  Create create = nullptr;
  SetStream set_stream = nullptr;
  SetWorkspace set_workspace = nullptr;
  SetMathMode set_math_mode = nullptr;
  Gemm gemm = nullptr;

  bool find(void* library) {
    create = reinterpret_cast<Create>(dlsym(library, "cublasCreate_v2"));
    set_stream = reinterpret_cast<SetStream>(dlsym(library, "cublasSetStream_v2"));
    set_workspace = reinterpret_cast<SetWorkspace>(dlsym(library, "cublasSetWorkspace_v2"));
    set_math_mode = reinterpret_cast<SetMathMode>(dlsym(library, "cublasSetMathMode"));
    gemm = reinterpret_cast<Gemm>(dlsym(library, "cublasGemmEx"));
    return create && set_stream && set_workspace && set_math_mode && gemm;
  }
} blas;

constexpr int real_32f = 0, real_16f = 2, real_16bf = 14;    // cudaDataType
constexpr int compute_32f = 68, compute_32f_fast_16bf = 75;  // cublasComputeType_t
constexpr int no_sums_in_16_bits = 16;                       // cublasMath_t
constexpr size_t workspace_bytes = 32 << 20;

template <class T>
constexpr int type_of() {
  if (__is_same(T, float)) return real_32f;
  return __is_same(T, Float16) ? real_16f : real_16bf;
}

void check_blas(int status, const char* what) {
  if (status) throw std::runtime_error(std::string("cuBLAS: ") + what + ": status " + std::to_string(status));
}

void* blas_handle() {
  return of_current<void*>([](int) {
    if (!blas.gemm && !load_blas(""))
      throw std::runtime_error("cuBLAS was not found: pip install nvidia-cublas, or import torch");
    void* handle;
    check_blas(blas.create(&handle), "cublasCreate");
    check_blas(blas.set_math_mode(handle, no_sums_in_16_bits), "cublasSetMathMode");
    return handle;
  });
}

std::mutex one_product;  // guards the handle

}  // namespace

bool load_blas(const std::string& library) {
  if (blas.gemm) return true;
  const char* const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11"};
  for (const char* name : names)
    if (void* found = dlopen(name, RTLD_NOW | RTLD_NOLOAD); found && blas.find(found)) return true;
  if (!library.empty()) {
    void* found = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    return found && blas.find(found);
  }
  for (const char* name : names)
    if (void* found = dlopen(name, RTLD_NOW | RTLD_LOCAL); found && blas.find(found)) return true;
  return false;
}

// cuBLAS is column-major, so it sees c transposed: the factors are swapped. Each product allocates its own workspace in stream
// order: two streams must not share one, and without one cuBLAS does not guarantee the same bits.
template <class S, class O>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<const S> a, Matrix<const S> b, Matrix<O> c, bool adds, bool coarse,
              Stream stream) {
  if (m == 0 || n == 0) return;
  const float one = 1, beta = adds ? 1.0f : 0.0f;
  void* const context = blas_handle();
  Scratch scratch(stream);
  auto* const workspace = scratch.get<unsigned char>(workspace_bytes);
  const std::lock_guard<std::mutex> lock(one_product);
  check_blas(blas.set_stream(context, handle(stream)), "cublasSetStream");
  check_blas(blas.set_workspace(context, workspace, workspace_bytes),
             "cublasSetWorkspace");  // after set_stream, which resets it
  check_blas(blas.gemm(context, b.transposed, a.transposed, int(n), int(m), int(k), &one, b.data, type_of<S>(), int(b.stride),
                       a.data, type_of<S>(), int(a.stride), &beta, c.data, type_of<O>(), int(c.stride),
                       coarse && __is_same(S, float) ? compute_32f_fast_16bf : compute_32f, -1),
             "cublasGemmEx");
}

template void multiply(int64_t, int64_t, int64_t, Matrix<const float>, Matrix<const float>, Matrix<float>, bool, bool, Stream);
template void multiply(int64_t, int64_t, int64_t, Matrix<const BFloat16>, Matrix<const BFloat16>, Matrix<float>, bool, bool,
                       Stream);
template void multiply(int64_t, int64_t, int64_t, Matrix<const BFloat16>, Matrix<const BFloat16>, Matrix<BFloat16>, bool, bool,
                       Stream);
template void multiply(int64_t, int64_t, int64_t, Matrix<const Float16>, Matrix<const Float16>, Matrix<float>, bool, bool,
                       Stream);
template void multiply(int64_t, int64_t, int64_t, Matrix<const Float16>, Matrix<const Float16>, Matrix<Float16>, bool, bool,
                       Stream);

}  // namespace throughtime::cuda
