// The contract between the bindings and every backend: the problems, and the table of entry points that a backend fills.
// Sizes: T timesteps, B sequences, I inputs, H units, P features of h (H unless the cell projects), G gates. Plain data only:
// this header is compiled for every instruction set, and any function in it would be one weak symbol shared by all of them.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace throughtime {

constexpr int max_states = 2;           // h, and c if the cell has one
constexpr int max_unit_parameters = 4;  // per-unit parameters of a cell, in addition to its biases

// Parameters that every cell has, in this order; weight_hr and biases may be missing. A cell's per-unit weights follow.
enum Parameter {
  weight_ih,
  weight_hh,
  bias_ih,
  bias_hh,
  weight_hr,
  first_unit_parameter,
  max_parameters = first_unit_parameter + max_unit_parameters
};

// A (T, B, F) array with contiguous features; strides in elements.
template <class S>
struct View {
  S* data;
  int64_t time, batch;
};

// One layer and direction over all timesteps.
template <class S>
struct Recurrence {
  int64_t T, B, I, H, P;
  bool reverse;                      // runs from timestep T - 1 down to 0
  View<const S> x;                   // (T, B, I)
  const S* weights[max_parameters];  // weight_ih (G H, I), weight_hh (G H, P), bias_ih (G H) or null, bias_hh (G H) or null,
                                     // weight_hr (P, H) of a projected cell, unit weights (count H) each; see UnitParameter
  const int64_t* lengths;            // (B), or null: sequence b is inactive at timesteps >= lengths[b]
  const uint8_t* resets;             // (T, B), or null: true on the first step of an episode
  const uint8_t* zoneout_mask[max_states];  // (T, B, P), (T, B, H), or null: true where a unit keeps its old state
  double zoneout[max_states];               // without a mask: fraction of the old state in the new one
  S* states[max_states];                    // (rows, B, P), (rows, B, H); see step/windows.hpp
  int64_t every;                            // steps between stored states; the last one is stored too. 0: all
  S* saved;  // saved for the backward, or null: (T, units, B, saved, lanes), or (T, B, units, saved, lanes) of a whole-row cell
  int variant;  // selects among cells that share one loop; set by the kernels
};

template <class S>
struct Forward : Recurrence<S> {
  View<S> output;  // (T, B, P); data may be null
};

template <class S>
struct Backward : Recurrence<S> {
  int64_t truncate;              // interval, in steps, at which the gradient stops; 0: never
  double clip;                   // maximum norm of the gradient carried from step to step; 0: no clipping
  View<const S> d_output;        // (T, B, P); data may be null
  const S* d_cell;               // (T, B, H), or null
  const S* d_final[max_states];  // (B, P), (B, H), or null
  View<S> d_input;               // (T, B, I); data may be null
  bool add_to_input;             // d_input already holds the other direction's gradient: add to it
  S* d_weights[max_parameters];  // shaped as the parameters; if that of weight_ih is null, none is computed
  S* d_initial[max_states];      // (B, P), (B, H), or null
  // Optional outputs for each timestep; each may be null.
  S* d_states[max_states];        // (T, B, P), (T, B, H): the total dL/dh_t, dL/dc_t
  S* d_gates;                     // (T, B, G H): gradient of the pre-activations' input part
  uint8_t* clipped;               // (T, B)
  double* norms[max_parameters];  // (T) each: Frobenius norm of the step's contribution to the parameter's gradient
  const uint8_t* dropped;         // (G H, P), or null: true for elements of weight_hh that this norm leaves out
  // Gradient flow, if `exponent` is given; see cpu/recurrent/scaled_gradient.hpp. d_output is then divided by
  // 2^d_output_exponent, and d_input by 2^exponent.
  const int32_t* d_output_exponent;  // (T, B); no_exponent: there is no loss, and d_output is not read
  int32_t* exponent;                 // (T, B): of the gradient at each timestep
  double* log10_sequence;            // (T, B): log10 of the norm of dL/dh_t over units
  double* log10_unit;                // (T, P): the same over sequences
};

constexpr int32_t no_exponent = INT32_MIN;  // the exponent of zero

enum class EngineKind : uint8_t { free, one_row, many_rows, avx512_bf16, amx };
enum class Split : uint8_t { free, sequences, units };

// Overrides for tests; all zero: choice.hpp and plan.hpp choose. Eight bytes, so that it can be atomic.
struct Forced {
  EngineKind engine;
  Split split;
  uint8_t rest;        // interval, in phases, at which a thread rests; see team.hpp
  bool polls_often;    // polls before every panel of a product
  uint16_t interrupt;  // raises SIGINT at this poll of a call, counted from 1
  uint16_t chunk;      // steps
};

// The services that the process provides to kernels. Filled by code built for the baseline, called through plain pointers.
struct Host {
  void* context;
  int threads;
  bool crowded;      // more threads than cores: a waiting thread yields at once
  int64_t patience;  // 50 us in ticks of the processor's counter; see team.hpp
  int64_t l2_bytes;  // of one core
  int terms;         // bfloat16 terms of a float32, if their products are faster: 3, 2 or 1
  bool avx512_bf16;  // whether EngineKind::avx512_bf16 was compiled and the processor supports it
  Forced forced;
  void* (*allocate)(void* context, size_t bytes);  // scratch for this call, 64-byte aligned
  // Runs body(argument, thread) on the calling thread, number 0, and on up to threads - 1 others as they arrive.
  void (*run)(void* context, void (*body)(void* argument, int thread), void* argument);
  void (*yield)();
  void (*nap)();                                   // sleeps for about 50 us
  bool (*stalls)(void* context, int64_t ticks);    // reports a wait for a thread that is not running; true: one must rest
  void (*rest)(void* context);                     // sleeps until called back, or until thread 0 has left its body
  void (*call_back)(void* context, bool resting);  // called by thread 0 when it polls or waits
  bool (*interrupted)(void* context);              // polled by thread 0 between chunks and within long ones
};

template <class S>
struct Entries {
  void (*forward)(const Forward<S>&, const Host&);
  void (*backward)(const Backward<S>&, const Host&);
};

// A per-unit parameter: (count H).
struct UnitParameter {
  const char* name;
  int count;
};

struct CellKernels {
  const char* name;
  int gates, states, saved;
  bool projects, whole_rows;
  UnitParameter unit_parameters[max_unit_parameters];  // up to the first without a name
  Entries<float> f32;
  Entries<double> f64;
};

// Attention over (T, B, heads, size): step t sees steps t - back to t + ahead of its sequence.
template <class S>
struct Attention {
  int64_t T, B, heads, size;
  int64_t back, ahead;
  const int64_t* lengths;  // (B), or null: later steps are not seen; their outputs and gradients are zero
  View<const S> q, k, v;   // (T, B, heads size) each
  S* saved;                // (B, heads, 2, T): each step's largest score, before scaling, and its sum of exponentials
};

template <class S>
struct AttentionForward : Attention<S> {
  View<S> output;  // (T, B, heads size)
};

template <class S>
struct AttentionBackward : Attention<S> {
  View<const S> output, d_output;
  View<S> d_q, d_k, d_v;
};

template <class S>
struct AttentionEntries {
  void (*forward)(const AttentionForward<S>&, const Host&);
  void (*backward)(const AttentionBackward<S>&, const Host&);
};

struct AttentionKernels {
  AttentionEntries<float> f32;
  AttentionEntries<double> f64;
};

// Residual add and LayerNorm of N rows of F features; see cpu/rowwise/layer_norm.hpp for the equations. Arrays are contiguous.
// Row statistics and the scale are of type Statistics: S, or float if S has 16 bits.
template <class S, class Statistics = S>
struct LayerNormForward {
  int64_t N, F;
  Statistics scale;
  double eps;
  const S* x;              // (N, F)
  const S* branch;         // (N, F), or null: x itself is normalised; there is no sum
  const S* weight;         // (F)
  const S* bias;           // (F)
  S* sum;                  // (N, F): x + scale branch, or null
  S* normalised;           // (N, F)
  Statistics* statistics;  // (N, 4): RowStatistics of each row for the backward, or null
};

template <class S, class Statistics = S>
struct LayerNormBackward {
  int64_t N, F;
  Statistics scale;
  const S* sum;                  // (N, F); x if there was no branch
  const S* weight;               // (F)
  const Statistics* statistics;  // (N, 4)
  const S* d_sum;                // (N, F), or null
  const S* d_normalised;         // (N, F)
  S* d_x;                        // (N, F)
  S* d_branch;                   // (N, F): scale d_x, or null
  S* d_weight;                   // (F)
  S* d_bias;                     // (F)
};

template <class S>
struct LayerNormEntries {
  void (*forward)(const LayerNormForward<S>&, const Host&);
  void (*backward)(const LayerNormBackward<S>&, const Host&);
};

struct LayerNormKernels {
  LayerNormEntries<float> f32;
  LayerNormEntries<double> f64;
};

// y = f(x + bias) for N rows of F features. Arrays are contiguous.
template <class S>
struct ActivationForward {
  int64_t N, F;
  const S* bias;  // (F)
  S* x;           // (N, F): overwritten by x + bias if the derivative needs it and y is another array
  S* y;           // (N, F); may be x
};

template <class S>
struct ActivationBackward {
  int64_t N, F;
  const S* saved;  // (N, F): y, or x + bias
  S* d;            // (N, F): dy on entry, dx on return
  S* d_bias;       // (F)
};

template <class S>
struct ActivationEntries {
  void (*forward)(const ActivationForward<S>&, const Host&);
  void (*backward)(const ActivationBackward<S>&, const Host&);
};

struct ActivationKernels {
  const char* name;
  bool of_argument;  // whether the derivative is computed from x + bias
  ActivationEntries<float> f32;
  ActivationEntries<double> f64;
};

// Embedding: rows of a table by index, and their gradient. Arrays are contiguous, and every index is in [0, count).
template <class S>
struct EmbeddingForward {
  int64_t N, F, count;
  const int64_t* indices;  // (N)
  const S* weight;         // (count, F)
  S* output;               // (N, F)
};

template <class S>
struct EmbeddingBackward {
  int64_t N, F, count;
  const int64_t* indices;  // (N)
  const S* d_output;       // (N, F)
  S* d_weight;             // (count, F): zero for an index that does not occur
};

// Cross entropy of N rows of C logits, and the gradient of its mean over the `kept` rows not ignored. Arrays are contiguous.
template <class S>
struct CrossEntropy {
  int64_t N, C, kept;
  int64_t ignore_index;
  const S* logits;         // (N, C)
  const int64_t* targets;  // (N): in [0, C), or ignore_index
  S* d_logits;             // (N, C)
  double* total;           // the sum over rows
};

template <class S>
struct SquaredError {
  int64_t N;
  const S* prediction;  // (N)
  const S* target;      // (N)
  S* d_prediction;      // (N): 2 (prediction - target) / N
  double* total;        // the sum of squares
};

template <class S>
struct TrainingEntries {
  void (*embedding_forward)(const EmbeddingForward<S>&, const Host&);
  void (*embedding_backward)(const EmbeddingBackward<S>&, const Host&);
  void (*cross_entropy)(const CrossEntropy<S>&, const Host&);
  void (*squared_error)(const SquaredError<S>&, const Host&);
};

// A contiguous piece of a parameter with gradient and optimiser state, or of a gradient. Types may differ from piece to piece.
struct Segment {
  int64_t size;  // at most segment_size
  bool is_double;
  void* value;
  const void* gradient;
  void* state[2];   // momentum of SGD; mean and mean square of Adam
  int64_t updates;  // of this parameter, including this one
};

// Numbers that a thread claims at a time: 10 us of Adam in float32 (AMD EPYC with AVX2), far more than claiming them costs.
constexpr int64_t segment_size = 1 << 14;

struct Segments {
  int64_t count;
  const Segment* data;
  bool overlap;  // some share memory: one thread processes all in order
};

struct SGDUpdate : Segments {
  double lr, momentum;
};

struct AdamUpdate : Segments {
  double lr, beta1, beta2, eps;
  double penalty;  // times the parameter, is added to its gradient
  double decay;    // the parameter is first multiplied by this
};

struct GradientNorm : Segments {
  double* norm;
};

struct GradientScale : Segments {
  double factor;
};

// Embedding, losses, optimisers and gradient clipping.
struct TrainingKernels {
  TrainingEntries<float> f32;
  TrainingEntries<double> f64;
  void (*sgd)(const SGDUpdate&, const Host&);
  void (*adam)(const AdamUpdate&, const Host&);
  void (*norm)(const GradientNorm&, const Host&);
  void (*scale)(const GradientScale&, const Host&);
};

// y = x W^T + b for N rows of I inputs and O outputs. Arrays are contiguous.
template <class S>
struct LinearForward {
  int64_t N, I, O;
  const S* x;       // (N, I)
  const S* weight;  // (O, I)
  const S* bias;    // (O), or null
  S* y;             // (N, O)
};

template <class S>
struct LinearBackward {
  int64_t N, I, O;
  const S* x;       // (N, I)
  const S* weight;  // (O, I)
  const S* d_y;     // (N, O)
  S* d_x;           // (N, I)
  S* d_weight;      // (O, I)
  S* d_bias;        // (O), or null
};

template <class S>
struct LinearEntries {
  void (*forward)(const LinearForward<S>&, const Host&);
  void (*backward)(const LinearBackward<S>&, const Host&);
};

struct LinearKernels {
  LinearEntries<float> f32;
  LinearEntries<double> f64;
};

struct Kernels {
  int vector_bytes;
  bool amx, avx512_bf16;  // whether EngineKind::amx and EngineKind::avx512_bf16 were compiled
  int count;
  const CellKernels* cells;
  double (*multiply_add)(int64_t rounds);  // float32 in registers only, on one core; returns the number of operations
  const AttentionKernels* attention;
  const LayerNormKernels* layer_norm;
  const ActivationKernels* activations;  // up to the first without a name
  const TrainingKernels* training;
  const LinearKernels* linear;
};

}  // namespace throughtime
