// Turns a dict of arrays into the problem of one layer and direction, for every backend. The backend reads the lengths, because
// they can only be validated in the processor's memory.
#pragma once

#include "arrays.hpp"
#include "cell_parameters.hpp"

namespace throughtime {

// `saved_shape(B, H)`: the shape of the values saved in one step.
template <class S, class Cell, class SavedShape>
void describe(const Cell& cell, const Arrays& from, const SavedShape& saved_shape, Recurrence<S>& p) {
  const Arrays weights = from.group("parameters"), states = from.group("states");
  const Sizes x = from.shape("x", 3), weight = weights.shape("weight_hh", 2);
  p.T = x[0], p.B = x[1], p.I = x[2], p.H = weight[0] / cell.gates, p.P = weight[1];
  if (!cell.projects && p.H != p.P) throw py::value_error("weight_hh: expected G H rows for H columns");
  p.reverse = from.truth("reverse");
  p.x = from.view<const S>("x", x);
  const std::vector<Named> named = parameters(cell, p.I, p.H, p.P);
  for (int i = 0; i < max_parameters; ++i) {
    if (!named[size_t(i)].name) continue;
    const auto& [name, shape] = named[size_t(i)];
    p.weights[i] = may_be_missing(i) ? weights.optional<const S>(name, shape) : weights.required<const S>(name, shape);
  }
  p.resets = from.optional<const uint8_t>("resets", {p.T, p.B});
  p.every = from.integer("every");
  if (p.T < 1 || p.H < 1 || p.every < 0 || p.every > p.T) throw py::value_error("every: expected 0 to T");
  const int64_t kept = p.every ? (p.T - 1) / p.every + 2 : p.T + 2;
  const Arrays zoneout = from.group("zoneout");
  for (int i = 0; i < cell.states; ++i) {
    const int64_t width = i == 0 ? p.P : p.H;
    p.states[i] = states.required<S>(state_names[i], {kept, p.B, width});
    if (zoneout.is_array(state_names[i])) p.zoneout_mask[i] = zoneout.optional<const uint8_t>(state_names[i], {p.T, p.B, width});
    else p.zoneout[i] = zoneout.number(state_names[i]);
  }
  Sizes saved = saved_shape(p.B, p.H);
  saved.insert(saved.begin(), p.T);
  p.saved = from.optional<S>("saved", saved);
}

template <class S, class Cell>
void describe_parameters(const Cell& cell, const Arrays& gradients, const Arrays& norms, Backward<S>& p) {
  const std::vector<Named> named = parameters(cell, p.I, p.H, p.P);
  const bool asks_norms = norms.has(named[0].name);
  for (int i = 0; i < max_parameters; ++i) {
    if (!named[size_t(i)].name) continue;
    const auto& [name, shape] = named[size_t(i)];
    p.d_weights[i] = may_be_missing(i) ? gradients.optional<S>(name, shape) : gradients.required<S>(name, shape);
    if (asks_norms) p.norms[i] = norms.required<double>(name, {p.T});
  }
}

// The number of bfloat16 terms that the call splits a float32 into, or `otherwise` if it is not given.
inline int terms_of(const Arrays& from, int otherwise) {
  if (!from.has("terms")) return otherwise;
  const int64_t terms = from.integer("terms");
  if (terms < 1 || terms > 3) throw py::value_error("terms: expected 1 to 3");
  return int(terms);
}

// Reads the inputs and outputs of a backward into a problem that `describe` has filled.
template <class S, class Cell>
void describe_gradients(const Cell& cell, const Arrays& gradients, Backward<S>& p) {
  const int64_t rows = cell.gates * p.H;
  p.truncate = gradients.integer("truncate");
  if (p.truncate < 0 || p.truncate > p.T) throw py::value_error("truncate: expected 0 to T");
  p.clip = gradients.number("clip");
  p.d_output = gradients.view<const S>("d_output", {p.T, p.B, p.P});
  p.d_cell = gradients.optional<const S>("d_cell", {p.T, p.B, p.H});
  p.d_input = gradients.view<S>("d_input", {p.T, p.B, p.I});
  p.add_to_input = gradients.truth("add_to_input");
  const Arrays d_final = gradients.group("d_final_state"), d_initial = gradients.group("d_initial_state"),
               d_states = gradients.group("d_states");
  for (int i = 0; i < cell.states; ++i) {
    const int64_t width = i == 0 ? p.P : p.H;
    p.d_final[i] = d_final.optional<const S>(state_names[i], {p.B, width});
    p.d_initial[i] = d_initial.optional<S>(state_names[i], {p.B, width});
    p.d_states[i] = d_states.optional<S>(state_names[i], {p.T, p.B, width});
    if (!p.d_initial[i] != !p.d_initial[0]) throw py::value_error("d_initial_state: expected all or none");
  }
  p.d_gates = gradients.optional<S>("d_gates", {p.T, p.B, rows});
  p.clipped = p.clip > 0 ? gradients.required<uint8_t>("clipped", {p.T, p.B}) : nullptr;
  p.dropped = gradients.optional<const uint8_t>("dropped", {rows, p.P});
  if (gradients.has("d_parameters")) describe_parameters(cell, gradients.group("d_parameters"), gradients.group("norms"), p);
}

}  // namespace throughtime
