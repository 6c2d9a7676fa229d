// Chooses the table of kernels at first use.
#include "dispatch.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace throughtime {

#if defined(__x86_64__)
namespace v2 {
extern const Kernels* const kernels;
}
namespace v3 {
extern const Kernels* const kernels;
}
namespace v4 {
extern const Kernels* const kernels;
}
#else
namespace neon {
extern const Kernels* const kernels;
}
#endif

const std::vector<Level>& levels() {
#if defined(__x86_64__)
  static const std::vector<Level> all = {
      {"v4", v4::kernels,
       [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
       }},
      {"v3", v3::kernels,
       [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                __builtin_cpu_supports("bmi2");
       }},
      {"v2", v2::kernels, [] { return bool(__builtin_cpu_supports("sse4.2")) && __builtin_cpu_supports("popcnt"); }},
  };
#else
  static const std::vector<Level> all = {{"neon", neon::kernels, [] { return true; }}};
#endif
  return all;
}

namespace {

const Level& choose() {
  const char* forced = std::getenv("THROUGHTIME_ISA");
  std::string usable;
  for (const Level& level : levels()) {
    if (!level.supported()) continue;
    if (!forced || !*forced || std::strcmp(forced, level.name) == 0) return level;
    usable += std::string(usable.empty() ? "" : ", ") + level.name;
  }
  if (usable.empty()) throw std::runtime_error("throughtime needs a processor of at least level x86-64-v2");
  throw std::runtime_error("THROUGHTIME_ISA is '" + std::string(forced) + "', expected one that this processor has: " + usable);
}

}  // namespace

const Level& level() {
  static const Level& chosen = choose();
  return chosen;
}

const CellKernels& find_cell(const char* name) {
  const Kernels& table = *level().kernels;
  for (int i = 0; i < table.count; ++i)
    if (std::strcmp(table.cells[i].name, name) == 0) return table.cells[i];
  throw std::invalid_argument("no cell is named " + std::string(name));
}

}  // namespace throughtime
