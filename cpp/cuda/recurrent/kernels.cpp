// The table of cells.
#include "kernels.hpp"

#include "../../cells/cells.hpp"
#include "entries.hpp"

namespace throughtime::cuda {

template <class C, class S>
constexpr Entries<S> entries = {Recurrent<C, S>::forward, Recurrent<C, S>::backward};

template <class... C>
struct Table {
  template <class Of>
  static constexpr CellKernels describe() {
    CellKernels cell{Of::name,
                     Of::gates,
                     Of::states,
                     Of::saved,
                     Of::projects,
                     {},
                     entries<Of, float>,
                     entries<Of, BFloat16>,
                     entries<Of, Float16>};
    for (int i = 0; i < max_unit_parameters; ++i) cell.unit_parameters[i] = Of::unit_parameters[i];
    return cell;
  }
  static constexpr CellKernels cells[] = {describe<C>()...};
  static constexpr int count = sizeof...(C);
};

template <class... C>
Table<C...> table_of(List<C...>);
using All = decltype(table_of(Cells{}));

const CellKernels* const cells = All::cells;
const int cell_count = All::count;

}  // namespace throughtime::cuda
