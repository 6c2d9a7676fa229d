// Chooses the table of kernels at first use.
#include "dispatch.hpp"

#if defined(TT_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace throughtime {

namespace amx {
extern const Kernels* const kernels;
}
namespace v2 {
extern const Kernels* const kernels;
}
namespace v3 {
extern const Kernels* const kernels;
}
namespace v4 {
extern const Kernels* const kernels;
}
namespace neon {
extern const Kernels* const kernels;
}

#if defined(__x86_64__)
namespace {

[[maybe_unused]] bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#if defined(TT_HAS_AMX)
// Whether the processor has tiles and bfloat16 products, and Linux grants this process the tile registers.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned bfloat16 = 1u << 22, tiles = 1u << 24;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & bfloat16) == 0 || (d & tiles) == 0) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
}
#endif

}  // namespace
#endif

const std::vector<Level>& levels() {
  static const std::vector<Level> all = {
#if defined(TT_HAS_AMX)
      {"amx", amx::kernels, has_amx},
#endif
#if defined(TT_HAS_V4)
      {"v4", v4::kernels, has_avx512},
#endif
#if defined(TT_HAS_V3)
      {"v3", v3::kernels,
       [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                __builtin_cpu_supports("bmi2");
       }},
#endif
#if defined(TT_HAS_V2)
      {"v2", v2::kernels, [] { return bool(__builtin_cpu_supports("sse4.2")) && __builtin_cpu_supports("popcnt"); }},
#endif
#if defined(TT_HAS_NEON)
      {"neon", neon::kernels, [] { return true; }},
#endif
  };
  return all;
}

namespace {

const char* assumed = nullptr;

const Level& choose() {
  for (const Level& level : levels())
    if (assumed && std::strcmp(assumed, level.name) == 0) return level;
  const char* forced = std::getenv("THROUGHTIME_ISA");
  std::string usable;
  for (const Level& level : levels()) {
    if (!level.supported()) continue;
    if (!forced || !*forced || std::strcmp(forced, level.name) == 0) return level;
    usable += std::string(usable.empty() ? "" : ", ") + level.name;
  }
  if (usable.empty()) throw std::runtime_error("throughtime needs a processor of at least level x86-64-v2");
  throw std::runtime_error("THROUGHTIME_ISA is '" + std::string(forced) +
                           "', expected one that this processor has and that is compiled in: " + usable);
}

}  // namespace

void assume_level(const char* name) {
  for (const Level& level : levels())
    if (std::strcmp(name, level.name) == 0) assumed = level.name;
  if (!assumed) throw std::invalid_argument("no instruction set is named " + std::string(name));
}

const Level& level() {
  static const Level& chosen = choose();
  return chosen;
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return level().kernels->avx512_bf16 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const CellKernels& find_cell(const char* name) {
  const Kernels& table = *level().kernels;
  for (int i = 0; i < table.count; ++i)
    if (std::strcmp(table.cells[i].name, name) == 0) return table.cells[i];
  throw std::invalid_argument("no cell is named " + std::string(name));
}

}  // namespace throughtime
