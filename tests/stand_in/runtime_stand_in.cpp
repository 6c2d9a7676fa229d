// The runtime of the stand-in: memory is the host's; work runs when it is queued, on the side stream as late as possible.
#include "cuda/system/device.hpp"
#include "cuda/system/runtime.hpp"

#include <stdlib.h>
#include <string.h>

#include <new>
#include <stdexcept>

namespace throughtime::stand_in {

namespace {

char side;  // its address is the side stream's handle
thread_local std::vector<std::function<void()>> late;

void catch_up() {
  const auto all = std::move(late);
  late.clear();
  for (const auto& work : all) work();
}

}  // namespace

void enqueue(void* stream, const std::function<void()>& work) {
  if (stream == &side) late.push_back(work);
  else work();
}

}  // namespace throughtime::stand_in

namespace throughtime::cuda {

const Device& device() {
  static const Device one{"stand-in", 132, 90, 227 << 10, 16};
  return one;
}
int current_device() { return 0; }
int device_count() { return 1; }
const bool is_stand_in = true;

void* allocate(size_t bytes, Stream) {
  void* block = aligned_alloc(256, (bytes + 511) / 256 * 256);
  if (!block) throw std::bad_alloc();
  return memset(block, 0xff, bytes);  // NaN: no code may rely on the contents of new memory
}
void release(void* block, Stream stream) {
  stand_in::enqueue(stream.handle, [=] { free(block); });
}
void copy(void* to, const void* from, size_t bytes, Stream stream) {
  stand_in::enqueue(stream.handle, [=] { memcpy(to, from, bytes); });
}
void fill(void* to, uint8_t byte, size_t bytes, Stream stream) {
  stand_in::enqueue(stream.handle, [=] { memset(to, byte, bytes); });
}
void synchronise(Stream stream) { wait({}, stream); }
void empty_cache() {}

Stream side_stream() { return {&stand_in::side}; }
void wait(Stream, Stream earlier) {
  if (earlier.handle == &stand_in::side) stand_in::catch_up();
}
bool load_blas(const std::string&) { return true; }

void check(int error, const char* what) {
  if (error) throw std::runtime_error(what);
}

namespace {

template <class S, class O>
void multiply_now(int64_t m, int64_t n, int64_t k, Matrix<const S> a, Matrix<const S> b, Matrix<O> c, bool adds, bool coarse) {
  const auto at = [coarse](const Matrix<const S>& matrix, int64_t row, int64_t column) {
    float value = to_float(matrix.data[matrix.transposed ? column * matrix.stride + row : row * matrix.stride + column]);
    if (!coarse) return value;
    BFloat16 rounded;
    from_float(value, rounded);
    return to_float(rounded);
  };
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = adds ? to_float(c.data[i * c.stride + j]) : 0;
      for (int64_t l = 0; l < k; ++l) sum += at(a, i, l) * at(b, l, j);
      from_float(sum, c.data[i * c.stride + j]);
    }
}

}  // namespace

template <class S, class O>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<const S> a, Matrix<const S> b, Matrix<O> c, bool adds, bool coarse,
              Stream stream) {
  if (c.transposed) throw std::runtime_error("multiply: the result lies in rows");
  stand_in::enqueue(stream.handle, [=] { multiply_now(m, n, k, a, b, c, adds, coarse); });
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
