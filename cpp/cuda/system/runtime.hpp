// The host's interface to a device: streams, memory in stream order, and the large matrix products, by cuBLAS. Errors are
// std::runtime_error. Two files implement it: runtime.cu, and runtime_stand_in.cpp for the stand-in (stand_in.hpp).
#pragma once

#include <stdint.h>

#include <string>

#include "types.hpp"

namespace throughtime::cuda {

// A cudaStream_t of the current device; null: the default stream.
struct Stream {
  void* handle = nullptr;
};

struct Device {
  std::string name;
  int multiprocessors, capability;  // 90 is 9.0
  int64_t shared_bytes;             // the maximum of a block
  int largest_cluster;              // blocks; 1: no clusters
};
const Device& device();  // the current one
int current_device();    // its number
int device_count();      // 0 if there is no driver
extern const bool is_stand_in;

void* allocate(size_t bytes, Stream);
void release(void*, Stream);
void copy(void* to, const void* from, size_t bytes, Stream);  // host or device in any direction; reads from the host at once
void fill(void* to, uint8_t byte, size_t bytes, Stream);
void synchronise(Stream);
void empty_cache();

// A second stream, in addition to the caller's; one per device.
Stream side_stream();
void wait(Stream stream, Stream earlier);  // later work of `stream` starts after all work queued in `earlier` so far

// Memory of one call, released in stream order after the call's work.
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

// Row-major, rows `stride` apart; `transposed`: the rows at `data` are the matrix's columns.
template <class S>
struct Matrix {
  S* data;
  int64_t stride;
  bool transposed = false;
};

// c (m, n) = a (m, k) b (k, n), or c += a b if `adds`. Sums are float32. float32 factors keep all bits, or become bfloat16 if
// `coarse`. S is float, BFloat16 or Float16; O is float or S.
template <class S, class O>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<const S> a, Matrix<const S> b, Matrix<O> c, bool adds, bool coarse, Stream);

void check(int error, const char* what);  // throws if error is not 0

// Finds cuBLAS: in a library that the process has loaded, else in the library of this name, or if that is empty under the usual
// names; false: not found.
bool load_blas(const std::string& library);

}  // namespace throughtime::cuda
