// The input part of a chunk's pre-activations, as one product, without bias, which the reader adds.
#pragma once

#include "../../cells/cell.hpp"
#include "../step/rows.hpp"
#include "chunk_product.hpp"
#include "chunks.hpp"

namespace throughtime::cuda {

template <class C, class S>
class Projection {
 public:
  Projection(const Recurrence<S>& problem, const Call& call, int64_t chunk, Scratch& scratch) : p(problem), terms(call.terms) {
    stride = matrix_stride(p.x, p.B, p.I);
    if (!stride) gathered = scratch.get<S>(chunk * p.B * p.I);
  }

  // Into (chunk timesteps, B, G, H).
  void run(const Chunk& chunk, float* into, Stream stream) const {
    const int64_t rows = chunk.count() * p.B, columns = C::gates * p.H;
    Matrix<const S> x{p.x.data + chunk.t0 * p.x.time, stride};
    if (gathered) {
      launch(stream, over(rows, p.I), gather_rows<S>, ChunkRows<S>{p, chunk.t0, p.I, 0}, p.x, gathered);
      x = {gathered, p.I};
    }
    chunk_product<S, float>(rows, columns, p.I, x, {p.weights[weight_ih], p.I, true}, {into, columns}, false, terms, stream);
  }

 private:
  const Recurrence<S> p;
  int terms;
  int64_t stride;
  S* gathered = nullptr;  // (chunk B, I); only if x is not a matrix in memory
};

}  // namespace throughtime::cuda
