// Bindings of the settings: instruction set, threads, bfloat16 terms, memory, and overrides for tests.
#include "register.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <string>

#include "../cpu/system/dispatch.hpp"
#include "../cpu/system/host.hpp"
#include "../cpu/system/openmp.hpp"

namespace throughtime {

namespace {

// The float32 operations per second that the threads of a call reach together: the best of many short intervals.
double peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t rounds = 1 << 20;  // a few milliseconds
  if (!(seconds >= 0 && seconds <= 60)) throw pybind11::value_error("seconds: expected 0 to 60");
  const Call call([] { return false; });
  const Host& host = call.host();
  double best = 0;
  const auto body = [](void* operations, int) {
    *static_cast<std::atomic<int64_t>*>(operations) += int64_t(level().kernels->multiply_add(rounds));
  };
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    std::atomic<int64_t> operations = 0;  // of the threads that arrived; Apple's library adds only integers
    const auto begin = Clock::now();
    host.run(host.context, body, &operations);
    const std::chrono::duration<double> taken = Clock::now() - begin;
    best = std::max(best, double(operations) / taken.count());
  } while (Clock::now() < end);
  return best;
}

}  // namespace

void register_config(pybind11::module_& m) {
  m.attr("compiler") = __VERSION__;
  m.def("levels", [] {
    std::vector<std::pair<std::string, bool>> found;
    for (const Level& level : levels()) found.emplace_back(level.name, level.supported());
    return found;
  });
  m.def("level", [] { return level().name; });
  // The available engines with bfloat16 products: into how many terms they can split a float.
  m.def("bfloat16_terms", [] {
    std::map<std::string, int> most;
    if (level().kernels->amx) most["amx"] = 3;
    if (has_avx512_bf16()) most["avx512_bf16"] = 1;
    return most;
  });
  m.def("get_num_threads", &get_num_threads);
  m.def("set_num_threads", [](int count) {
    if (count < 1 || count > most_threads) throw pybind11::value_error("count: expected 1 to " + std::to_string(most_threads));
    set_num_threads(count);
  });
  m.def("usable_cores", &usable_cores);
  m.def("get_terms", &get_terms);
  m.def("set_terms", [](int count) {
    if (count < 1 || count > 3) throw pybind11::value_error("count: expected 1 to 3");
    set_terms(count);
  });
  m.def("assume_level", &assume_level);
  // For tests: "" and 0 leave the choice free.
  m.def(
      "force",
      [](const std::string& engine, const std::string& split, int chunk, uint8_t rest, bool polls_often, uint16_t interrupt) {
        const std::map<std::string, EngineKind> engines = {{"", EngineKind::free},
                                                           {"one_row", EngineKind::one_row},
                                                           {"many_rows", EngineKind::many_rows},
                                                           {"amx", EngineKind::amx}};
        const std::map<std::string, Split> splits = {{"", Split::free}, {"sequences", Split::sequences}, {"units", Split::units}};
        if (!engines.contains(engine)) throw pybind11::value_error("engine: no such one as " + engine);
        if (!splits.contains(split)) throw pybind11::value_error("split: no such one as " + split);
        if (chunk < 0 || chunk > UINT16_MAX) throw pybind11::value_error("chunk: expected 0 to 65535");
        force({engines.at(engine), splits.at(split), rest, polls_often, interrupt, uint16_t(chunk)});
      },
      pybind11::arg("engine") = "", pybind11::arg("split") = "", pybind11::arg("chunk") = 0, pybind11::arg("rest") = 0,
      pybind11::arg("polls_often") = false, pybind11::arg("interrupt") = 0);
  m.def("poison", &pool_poison);  // for tests: see memory.hpp
  // Takes the addresses of an OpenMP runtime's functions, 0 for those that it lacks; see openmp.hpp.
  m.def("borrow_threads", [](const std::map<std::string, uintptr_t>& functions) {
    const auto find = [&](const char* name, auto& to) {
      const auto found = functions.find(name);
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(found == functions.end() ? 0 : found->second);
    };
    OpenMP runtime{};
    find("GOMP_parallel", runtime.parallel);
    find("__kmpc_fork_call", runtime.fork_call);
    find("__kmpc_push_num_threads", runtime.push_num_threads);
    find("__kmpc_global_thread_num", runtime.global_thread_num);
    find("omp_in_parallel", runtime.in_parallel);
    find("omp_get_thread_num", runtime.thread_num);
    find("omp_get_max_threads", runtime.max_threads);
    const bool runs = runtime.parallel || (runtime.fork_call && runtime.push_num_threads && runtime.global_thread_num);
    if (!runs || !runtime.in_parallel || !runtime.thread_num || !runtime.max_threads)
      throw pybind11::value_error("functions: expected those of an OpenMP runtime");
    borrow(runtime);
  });
  m.def("empty_cache", [] { pool_trim(0); });
  m.def("peak", &peak, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace throughtime
