// Applies a function of math.hpp to standard input, in the machine's binary format. Subnormals are zero, as in the kernels.
#include <stdio.h>
#include <string.h>

#include "cpu/system/team.hpp"
#include "math.hpp"

using namespace throughtime::TT_ISA;

template <class S, class Function>
void pass(Function function) {
  const FlushSubnormals flush;
  for (Vec<S> x; fread(&x, sizeof x, 1, stdin) == 1;) {
    const Vec<S> y = function(x);
    fwrite(&y, sizeof y, 1, stdout);
  }
}

template <class S>
void run(const char* function) {
  const auto is = [=](const char* name) { return !strcmp(function, name); };
  if (is("exp")) pass<S>([](Vec<S> x) { return exp(x); });
  if (is("sigmoid")) pass<S>([](Vec<S> x) { return sigmoid(x); });
  if (is("tanh")) pass<S>([](Vec<S> x) { return tanh(x); });
  if (is("density") || is("distribution"))
    pass<S>([&](Vec<S> x) {
      Vec<S> density, distribution;
      normal(x, density, distribution);
      return is("density") ? density : distribution;
    });
}

int main(int, char** argument) { !strcmp(argument[1], "float32") ? run<float>(argument[2]) : run<double>(argument[2]); }
