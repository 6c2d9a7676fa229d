// The names of a cell's parameters and states, and the parameters' shapes, in the kernels' order.
#pragma once

#include <vector>

#include "../kernels.hpp"

namespace throughtime {

using Sizes = std::vector<int64_t>;

constexpr const char* state_names[max_states] = {"hidden", "cell"};
constexpr const char* common_names[first_unit_parameter] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"};

// A parameter's name and shape; the name is null if the cell has no such parameter.
struct Named {
  const char* name;
  Sizes shape;
};

template <class Cell>
std::vector<Named> parameters(const Cell& cell, int64_t I, int64_t H, int64_t P) {
  const int64_t rows = cell.gates * H;
  std::vector<Named> all;
  for (const Sizes& shape : {Sizes{rows, I}, Sizes{rows, P}, Sizes{rows}, Sizes{rows}, Sizes{P, H}})
    all.push_back({common_names[all.size()], shape});
  if (!cell.projects) all.back().name = nullptr;
  for (const UnitParameter& weight : cell.unit_parameters) all.push_back({weight.name, {weight.count * H}});
  return all;
}

inline bool may_be_missing(int parameter) { return parameter == bias_ih || parameter == bias_hh; }

}  // namespace throughtime
