// The runtime where the CPU plays the GPU: memory is the host's, work is done when it is asked for, on the side queue late.
#include "device.hpp"
#include "runtime.hpp"

#include <stdlib.h>
#include <string.h>

#include <new>
#include <stdexcept>

namespace throughtime::stand_in {

namespace {

char side;  // whose address is the side queue's
thread_local std::vector<std::function<void()>> late;

void catch_up() {
  const auto all = std::move(late);
  late.clear();
  for (const auto& work : all) work();
}

}  // namespace

void enqueue(void* queue, const std::function<void()>& work) {
  if (queue == &side) late.push_back(work);
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

void* allocate(size_t bytes, Queue) {
  void* block = aligned_alloc(256, (bytes + 511) / 256 * 256);
  if (!block) throw std::bad_alloc();
  return memset(block, 0xff, bytes);  // NaN: nobody may rely on what fresh memory holds
}
void release(void* block, Queue queue) {
  stand_in::enqueue(queue.stream, [=] { free(block); });
}
void copy(void* to, const void* from, size_t bytes, Queue queue) {
  stand_in::enqueue(queue.stream, [=] { memcpy(to, from, bytes); });
}
void fill(void* to, uint8_t byte, size_t bytes, Queue queue) {
  stand_in::enqueue(queue.stream, [=] { memset(to, byte, bytes); });
}
void synchronise(Queue queue) { order(queue, {}); }
void empty_cache() {}

Queue side_queue() { return {&stand_in::side}; }
void order(Queue earlier, Queue) {
  if (earlier.stream == &stand_in::side) stand_in::catch_up();
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
              Queue queue) {
  if (c.transposed) throw std::runtime_error("multiply: the result lies in rows");
  stand_in::enqueue(queue.stream, [=] { multiply_now(m, n, k, a, b, c, adds, coarse); });
}

template void multiply(int64_t, int64_t, int64_t, Matrix<const float>, Matrix<const float>, Matrix<float>, bool, bool, Queue);
template void multiply(int64_t, int64_t, int64_t, Matrix<const BFloat16>, Matrix<const BFloat16>, Matrix<float>, bool, bool,
                       Queue);
template void multiply(int64_t, int64_t, int64_t, Matrix<const BFloat16>, Matrix<const BFloat16>, Matrix<BFloat16>, bool, bool,
                       Queue);
template void multiply(int64_t, int64_t, int64_t, Matrix<const Float16>, Matrix<const Float16>, Matrix<float>, bool, bool, Queue);
template void multiply(int64_t, int64_t, int64_t, Matrix<const Float16>, Matrix<const Float16>, Matrix<Float16>, bool, bool,
                       Queue);

}  // namespace throughtime::cuda
