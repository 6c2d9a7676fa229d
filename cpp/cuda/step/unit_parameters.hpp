// Parameters of each unit, as float32 in rows: (values, H).
#pragma once

#include "../../step/unit_parameters.hpp"
#include "rows.hpp"

namespace throughtime::cuda {

template <class C, class S>
const float* gather_unit_rows(const Recurrence<S>& p, Scratch& scratch, Stream stream) {
  constexpr int values = unit_parameter_count<C>();
  if (values == 0) return nullptr;
  float* gathered = scratch.get<float>(values * p.H);
  fill(gathered, 0, size_t(values * p.H) * sizeof(float), stream);
  for_unit_parameters<C>(p.weights, p.H, [&](int value, const S* from) {
    launch(stream, over(1, p.H), add_to_row<S>, from, gathered + value * p.H, p.H);
  });
  return gathered;
}

}  // namespace throughtime::cuda
