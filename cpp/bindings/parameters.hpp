// What a cell's parameters and saved values are called, and their shapes, as the kernels number them.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "../cpu/dispatch.hpp"

namespace throughtime {

using Sizes = std::vector<int64_t>;

constexpr const char* state_names[max_states] = {"hidden", "cell"};
constexpr const char* common_names[unit_weights] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"};

// What a parameter is called, and its shape; without a name where the cell has no such one.
struct Named {
  const char* name;
  Sizes shape;
};

inline std::vector<Named> parameters(const CellKernels& cell, int64_t I, int64_t H, int64_t P) {
  const int64_t rows = cell.gates * H;
  std::vector<Named> all;
  for (const Sizes& shape : {Sizes{rows, I}, Sizes{rows, P}, Sizes{rows}, Sizes{rows}, Sizes{P, H}})
    all.push_back({common_names[all.size()], shape});
  if (!cell.projects) all.back().name = nullptr;
  for (const UnitWeight& weight : cell.unit_weights) all.push_back({weight.name, {weight.count * H}});
  return all;
}

inline bool may_be_missing(int parameter) { return parameter == bias_ih || parameter == bias_hh; }

template <class S>
const Entries<S>& entries(const CellKernels& cell) {
  if constexpr (std::is_same_v<S, float>) return cell.f32;
  else return cell.f64;
}

// Of one step and sequence: (units, saved, lanes).
template <class S>
Sizes saved_shape(const CellKernels& cell, int64_t H) {
  const int64_t lanes = level().kernels->vector_bytes / int64_t(sizeof(S));
  return {(H + lanes - 1) / lanes, cell.saved, lanes};
}

}  // namespace throughtime
