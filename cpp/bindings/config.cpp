// Instruction sets and threads.
#include "register.hpp"

#include <pybind11/stl.h>

#include "../cpu/dispatch.hpp"
#include "../cpu/host.hpp"

namespace throughtime {

void register_config(pybind11::module_& m) {
  m.def("levels", [] {
    std::vector<std::pair<std::string, bool>> found;
    for (const Level& level : levels()) found.emplace_back(level.name, level.supported());
    return found;
  });
  m.def("level", [] { return level().name; });
  m.def("get_num_threads", &get_num_threads);
  m.def("set_num_threads", &set_num_threads);
  m.def("usable_cores", &usable_cores);
  m.def("empty_cache", [] { pool_trim(0); });
}

}  // namespace throughtime
