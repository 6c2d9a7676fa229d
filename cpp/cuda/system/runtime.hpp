// What the host asks of a device: streams (streams), memory in their order, and the large matrix products, which are cuBLAS's.
// Errors are std::runtime_error. Two files fill it: runtime.cu, and runtime_stand_in.cpp where stand_in.hpp plays the GPU.
#pragma once

#include <stdint.h>

#include <string>

#include "types.hpp"

namespace throughtime::cuda {

// Where work goes, in order: a cudaStream_t of the current device; null is the default one.
struct Stream {
  void* handle = nullptr;
};

struct Device {
  std::string name;
  int multiprocessors, capability;  // 90 is 9.0
  int64_t shared_bytes;             // that a block may have
  int largest_cluster;              // blocks; 1 where there are no clusters
};
const Device& device();  // the current one
int current_device();    // its number
int device_count();      // 0 where there is no driver
extern const bool is_stand_in;

void* allocate(size_t bytes, Stream);
void release(void*, Stream);
void copy(void* to, const void* from, size_t bytes, Stream);  // between host and device in any direction; from the host at once
void fill(void* to, uint8_t byte, size_t bytes, Stream);
void synchronise(Stream);
void empty_cache();

// A second stream of the device, in addition to the caller's.
Stream side_stream();
void wait(Stream stream, Stream earlier);  // work given to `stream` from now on starts after all that `earlier` has

// Memory of one call, given back when the call's work is done.
class Scratch {
 public:
  explicit Scratch(Stream of_call) : stream(of_call) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    for (int i = count; i-- > 0;) release(blocks[i], stream);
  }
  template <class T>
  T* get(int64_t n) {
    return static_cast<T*>(blocks[count++] = allocate(size_t(n > 0 ? n : 1) * sizeof(T), stream));
  }

 private:
  static constexpr int most = 64;
  Stream stream;
  void* blocks[most];
  int count = 0;
};

// Row-major; `transposed`: of what lies at `data` the rows, `stride` apart, are the matrix's columns.
template <class S>
struct Matrix {
  S* data;
  int64_t stride;
  bool transposed = false;
};

// c (m, n) = a (m, k) b (k, n), added to what c holds where `adds`. Sums are float32; factors that are float32 keep their bits,
// or become bfloat16 where `coarse`. S is float, BFloat16 or Float16, O is float or S.
template <class S, class O>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<const S> a, Matrix<const S> b, Matrix<O> c, bool adds, bool coarse, Stream);

void check(int error, const char* what);  // throws unless it is 0

// Finds cuBLAS in a library of this name, or in one that the process has already where that is empty; false: not found.
bool load_blas(const std::string& library);

}  // namespace throughtime::cuda
