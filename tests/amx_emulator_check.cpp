// Runs AMX instructions and compares their results, bit for bit, with plain loops over the same numbers.
//   amx_emulator_check HOW           HOW is an emulator (a shared library), or "processor" for the processor's own AMX
//   amx_emulator_check HOW MISTAKE   makes the named mistake, which a processor refuses; "time": microseconds per instruction
// Prints one line per proof. The exit status tells whether all hold; it is 77 if AMX may not be used.

#include <dlfcn.h>
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Random = std::mt19937;

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};

  Config& shape(int tile, int row_count, int row_bytes) {
    rows[tile] = static_cast<uint8_t>(row_count);
    colsb[tile] = static_cast<uint16_t>(row_bytes);
    return *this;
  }
  void load() const {
    asm volatile("" ::"r"(this) : "memory");  // g++ 12 assumes that the next line reads only 8 bytes
    _tile_loadconfig(this);
  }
  bool operator==(const Config& other) const { return memcmp(this, &other, sizeof *this) == 0; }
};

Config current_config() {
  Config config;
  memset(static_cast<void*>(&config), 0xff, sizeof config);
  _tile_storeconfig(&config);
  asm volatile("" ::"r"(&config) : "memory");
  return config;
}

bool report(bool holds, const std::string& proof) {
  std::printf("%s %s\n", holds ? "ok    " : "FAILED", proof.c_str());
  return holds;
}

// ---- Products: dst (M, N) += a (M, K) b (K, N), in dwords of two bfloat16 or four bytes; tiles 5, 7 and 2

enum Operation { bf16ps, bssd, bsud, busd, buud, operations };
constexpr const char* names[] = {"TDPBF16PS", "TDPBSSD", "TDPBSUD", "TDPBUSD", "TDPBUUD"};

void execute(Operation operation) {
  if (operation == bf16ps) _tile_dpbf16ps(5, 7, 2);
  else if (operation == bssd) _tile_dpbssd(5, 7, 2);
  else if (operation == bsud) _tile_dpbsud(5, 7, 2);
  else if (operation == busd) _tile_dpbusd(5, 7, 2);
  else _tile_dpbuud(5, 7, 2);
}

float flush(float value) { return std::fabs(value) < FLT_MIN ? std::copysign(0.0f, value) : value; }
float widen(uint32_t dword, int half) { return std::bit_cast<float>(half ? dword & 0xffff0000 : dword << 16); }
int widen(uint32_t dword, int i, bool is_signed) {
  const auto byte = static_cast<uint8_t>(dword >> 8 * i);
  return is_signed ? static_cast<int8_t>(byte) : byte;
}

struct Matrix {  // of dwords; each row is followed by a gap
  static constexpr uint32_t gap = 0xdeadbeef;
  int rows, columns, stride;
  std::vector<uint32_t> data;

  Matrix(int rows, int columns, int gaps)
      : rows(rows), columns(columns), stride(columns + gaps), data(static_cast<size_t>(rows * stride), gap) {}
  uint32_t& at(int r, int c) { return data[static_cast<size_t>(r * stride + c)]; }
  int stride_bytes() const { return 4 * stride; }
};

void multiply(Operation operation, Matrix& dst, Matrix& a, Matrix& b, bool flushes = true) {
  const auto f = [&](float value) { return flushes ? flush(value) : value; };
  for (int m = 0; m < dst.rows; ++m)
    for (int n = 0; n < dst.columns; ++n) {
      float sums[2] = {};
      uint32_t sum = dst.at(m, n);
      for (int k = 0; k < b.rows; ++k) {
        const uint32_t x = a.at(m, k), y = b.at(k, n);
        for (int i = 0; i < 2; ++i) sums[i] = f(std::fma(f(widen(x, i)), f(widen(y, i)), sums[i]));
        for (int i = 0; i < 4; ++i)
          sum += static_cast<uint32_t>(widen(x, i, operation == bssd || operation == bsud) *
                                       widen(y, i, operation == bssd || operation == busd));
      }
      if (operation == bf16ps) sum = std::bit_cast<uint32_t>(f(f(std::bit_cast<float>(dst.at(m, n))) + f(sums[0] + sums[1])));
      dst.at(m, n) = sum;
    }
}

// The bits of a resulting NaN are not specified.
bool same(Operation operation, const Matrix& x, const Matrix& y) {
  for (size_t i = 0; i < x.data.size(); ++i) {
    const bool both_nan = std::isnan(std::bit_cast<float>(x.data[i])) && std::isnan(std::bit_cast<float>(y.data[i]));
    if (x.data[i] != y.data[i] && !(operation == bf16ps && both_nan)) return false;
  }
  return true;
}

enum Numbers { usual, tiny, special, bytes };
constexpr const char* number_names[] = {"usual numbers", "around the smallest", "infinities and NaN", "bytes"};

uint32_t draw(Random& random, Numbers numbers, bool bf16) {
  const auto number = [&]() -> uint32_t {
    if (numbers == bytes) return static_cast<uint32_t>(random());
    const uint32_t bits = static_cast<uint32_t>(random()) & 0x807fffff;
    // A product of two around 2^-63 is around the smallest normal number, 2^-126; every eighth is subnormal itself.
    if (numbers == tiny) return bits | (random() % 8 ? (bf16 ? 127 - 66 + random() % 8 : random() % 6) << 23 : 0);
    if (numbers == special && random() % 64 == 0) return (bits & 0x80000000) | (random() % 3 ? 0x7f800000 : 0x7fc00000);
    return bits | (127 - 8 + random() % 16) << 23;
  };
  return bf16 ? number() >> 16 | (number() & 0xffff0000) : number();
}

bool products_agree(Operation operation, Numbers numbers, int M, int K, int N, unsigned seed, bool must_flush = false) {
  Random random(seed);
  Matrix a(M, K, 3), b(K, N, 5), c(M, N, 1), out(M, N, 2), from_zero(M, N, 7), turned(K, N, 5);
  for (Matrix* matrix : {&a, &b, &c})
    for (int r = 0; r < matrix->rows; ++r)
      for (int i = 0; i < matrix->columns; ++i) matrix->at(r, i) = draw(random, numbers, numbers != bytes && matrix != &c);
  Matrix expected = out, expected_from_zero = from_zero;

  Config config;
  config.shape(5, M, 4 * N).shape(7, M, 4 * K).shape(2, K, 4 * N).shape(0, 3, 9);
  const unsigned before = _mm_getcsr();
  const unsigned mxcsr = 0x1f80 | 0x4000;  // rounds up and keeps subnormals, unlike AMX
  _mm_setcsr(mxcsr);
  config.load();
  _tile_loadd(7, a.data.data(), a.stride_bytes());
  _tile_loadd(2, &b.at(K - 1, 0), -b.stride_bytes());  // from the last row up
  _tile_stored(2, &turned.at(K - 1, 0), -turned.stride_bytes());
  _tile_loadd(5, c.data.data(), c.stride_bytes());
  _tile_stream_loadd(2, b.data.data(), b.stride_bytes());
  execute(operation);
  execute(operation);
  _tile_stored(5, out.data.data(), out.stride_bytes());
  _tile_zero(5);
  execute(operation);
  _tile_stored(5, from_zero.data.data(), from_zero.stride_bytes());
  asm volatile("" ::: "memory");
  const bool mxcsr_kept = _mm_getcsr() == mxcsr;
  _mm_setcsr(before);
  const bool config_kept = current_config() == config;
  _tile_release();

  const auto model = [&](bool flushes) {
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) expected.at(m, n) = c.at(m, n), expected_from_zero.at(m, n) = 0;
    for (int i = 0; i < 2; ++i) multiply(operation, expected, a, b, flushes);
    multiply(operation, expected_from_zero, a, b, flushes);
    return same(operation, out, expected) && same(operation, from_zero, expected_from_zero);
  };
  if (must_flush && model(false)) return false;  // nothing was flushed: no proof
  return model(true) && mxcsr_kept && config_kept && turned.data == b.data;
}

constexpr int shapes[][3] = {{16, 16, 16}, {5, 5, 5}, {1, 1, 1}, {16, 3, 7}, {3, 16, 16}, {7, 2, 16}, {16, 16, 1}, {15, 9, 15}};

bool prove_products() {
  bool all = true;
  for (int operation = 0; operation < operations; ++operation)
    for (int numbers = operation == bf16ps ? usual : bytes; numbers <= (operation == bf16ps ? special : bytes); ++numbers) {
      bool holds = true;
      for (const auto& [M, K, N] : shapes)
        for (unsigned seed = 0; seed < 20; ++seed)
          holds &= products_agree(static_cast<Operation>(operation), static_cast<Numbers>(numbers), M, K, N, seed,
                                  numbers == tiny && M * K * N == 4096);
      all &= report(holds, std::string("product: ") + names[operation] + " of " + number_names[numbers]);
    }
  return all;
}

// ---- Addresses: each base and index register, each length of displacement, each scale

asm(R"(
.bss
saved_rsp: .quad 0
.globl base_value, index_value
base_value: .quad 0
index_value: .quad 0
.data
.globl address_cases, address_cases_end
address_cases:
.text
.irp base, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
.irp index, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
.ifnc \base, \index
  .pushsection .data
  .quad 1f
  .popsection
1:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, saved_rsp(%rip)
  mov base_value(%rip), %\base
  mov index_value(%rip), %\index
  ldtilecfg 0x40(%\base)
  sttilecfg 0x18000(%\base)
  sttilecfg 0x1a000(%\base,%\index,4)
  tileloadd (%\base,%\index,1), %tmm0
  tileloaddt1 -0x80(%\base,%\index,2), %tmm1
  tileloadd -0x20000(%\base,%\index,8), %tmm2
  tileloadd 0x10001000(,%\index,2), %tmm3
  tileloadd (%\base), %tmm4
  tilestored %tmm0, 0x1c000(%\base,%\index,4)
  mov saved_rsp(%rip), %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.endif
.endr
.endr
.data
address_cases_end:
.text
)");
extern "C" uint8_t* base_value;
extern "C" int64_t index_value;
extern "C" void (*address_cases[])();
extern "C" void (*address_cases_end[])();

thread_local Config of_thread;
Config of_program, stored_of_program;

bool prove_addresses() {
  Random random(1);
  const auto fill = [&](void* to, int count) {
    for (int i = 0; i < count; ++i) static_cast<uint8_t*>(to)[i] = static_cast<uint8_t>(random());
  };
  // rsp is a base too, so a signal writes some 4 KiB below the base, except to the 128 bytes next to it.
  std::vector<uint8_t> arena(0x80000);
  uint8_t* base = arena.data() + 0x40000;
  fill(arena.data(), static_cast<int>(arena.size()));
  constexpr int row_count = 13, row_bytes = 52, stride = 72;
  Config config;
  for (int t = 0; t < 8; ++t) config.shape(t, row_count, row_bytes);
  memcpy(base + 0x40, &config, sizeof config);

  void* const fixed = reinterpret_cast<void*>(0x10001000);  // an address that fits in a displacement
  if (mmap(fixed, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != fixed) {
    return report(false, "address: no memory at 0x10001000");
  }
  fill(fixed, 4096);

  const auto rows_equal = [&](const uint8_t* x, int64_t x_stride, const uint8_t* y, int64_t y_stride) {
    bool equal = true;
    for (int r = 0; r < row_count; ++r) equal &= memcmp(x + r * x_stride, y + r * y_stride, row_bytes) == 0;
    return equal;
  };
  base_value = base;
  index_value = stride;
  bool holds = true;
  int count = 0;
  for (void (**function)() = address_cases; function != address_cases_end; ++function, ++count) {
    memset(base + 0x18000, 0, 0x8000);
    (*function)();
    uint8_t tiles[5][row_count][row_bytes];
    _tile_stored(0, tiles[0], row_bytes);
    _tile_stored(1, tiles[1], row_bytes);
    _tile_stored(2, tiles[2], row_bytes);
    _tile_stored(3, tiles[3], row_bytes);
    _tile_stored(4, tiles[4], row_bytes);
    asm volatile("" ::: "memory");
    holds &= rows_equal(tiles[0][0], row_bytes, base, stride);
    holds &= rows_equal(tiles[1][0], row_bytes, base - 0x80, 2 * stride);
    holds &= rows_equal(tiles[2][0], row_bytes, base - 0x20000, 8 * stride);
    holds &= rows_equal(tiles[3][0], row_bytes, static_cast<uint8_t*>(fixed), 2 * stride);
    holds &= rows_equal(tiles[4][0], row_bytes, base, 0);
    holds &= rows_equal(base + 0x1c000, 4 * stride, base, stride);
    holds &= memcmp(base + 0x18000, &config, sizeof config) == 0;
    holds &= memcmp(base + 0x1a000 + 4 * stride, &config, sizeof config) == 0;
  }
  holds = report(holds && count == 15 * 15, "address: every base and index register");

  of_program.shape(3, 2, 8);
  of_thread.shape(4, 5, 60);
  asm volatile("ldtilecfg %0" ::"m"(of_program));
  asm volatile("sttilecfg %0" : "=m"(stored_of_program));
  bool configs = stored_of_program == of_program;
  asm volatile("ldtilecfg %0" ::"m"(of_thread));
  configs &= current_config() == of_thread;
  _tile_release();
  return report(configs, "address: relative to rip and to the thread") && holds;
}

// ---- State

bool prove_zeros() {
  const std::vector<uint8_t> ones(1024, 0xff), zeros(1024);
  std::vector<uint8_t> out[3] = {ones, ones, ones};
  const Config config = Config().shape(6, 16, 64);
  config.load();
  _tile_loadd(6, ones.data(), 64);
  config.load();
  _tile_stored(6, out[0].data(), 64);
  _tile_loadd(6, ones.data(), 64);
  _tile_zero(6);
  _tile_stored(6, out[1].data(), 64);
  _tile_loadd(6, ones.data(), 64);
  _tile_release();
  config.load();
  _tile_stored(6, out[2].data(), 64);
  _tile_release();
  asm volatile("" ::: "memory");
  return report(out[0] == zeros && out[1] == zeros && out[2] == zeros, "state: LDTILECFG and TILEZERO leave zeros");
}

bool prove_threads() {
  const Config none = [] {
    Config config;
    config.palette = 0;
    return config;
  }();
  bool fresh = current_config() == none;
  bool holds[2] = {true, true};
  const auto work = [&](int which) {
    holds[which] &= current_config() == none;
    for (unsigned seed = 0; seed < 500; ++seed) {
      const auto& [M, K, N] = shapes[which + 2 * (seed % 4)];
      holds[which] &= products_agree(which ? bf16ps : bssd, which ? usual : bytes, M, K, N, seed);
    }
  };
  std::thread other(work, 1);
  work(0);
  other.join();
  bool all = report(holds[0] && holds[1], "state: two threads at once, of different tiles");

  for (int i = 0; i < 300; ++i) {  // more threads than the emulator has tiles for
    std::thread([&] {
      fresh &= current_config() == none;
      Config().shape(0, 1, 4).load();
      i % 2 ? _tile_release() : none.load();
      fresh &= current_config() == none;
    }).join();
  }
  return report(fresh, "state: each thread begins unconfigured, and ends so") && all;
}

// ---- Mistakes

void load_three(int dst_rows, int dst_colsb, int a_rows, int a_colsb, int b_rows, int b_colsb) {
  Config().shape(5, dst_rows, dst_colsb).shape(7, a_rows, a_colsb).shape(2, b_rows, b_colsb).load();
}

const std::map<std::string, std::function<void()>> mistakes = {
    {"load before configuration", [] { _tile_loadd(0, &of_program, 64); }},
    {"store before configuration", [] { _tile_stored(0, &of_program, 64); }},
    {"zero before configuration", [] { _tile_zero(0); }},
    {"product before configuration", [] { execute(bf16ps); }},
    {"product after release",
     [] {
       load_three(16, 64, 16, 64, 16, 64);
       _tile_release();
       execute(bssd);
     }},
    {"palette", [] { (of_program = Config()).palette = 2, of_program.load(); }},
    {"start row", [] { (of_program = Config()).start_row = 1, of_program.load(); }},
    {"reserved", [] { (of_program = Config()).reserved[13] = 1, of_program.load(); }},
    {"ninth tile", [] { Config().shape(8, 1, 4).load(); }},
    {"rows", [] { Config().shape(0, 17, 64).load(); }},
    {"bytes", [] { Config().shape(7, 16, 65).load(); }},
    {"rows without bytes", [] { Config().shape(1, 16, 0).load(); }},
    {"bytes without rows", [] { Config().shape(1, 0, 64).load(); }},
    {"load into absent tile",
     [] {
       Config().shape(1, 16, 64).load();
       _tile_stream_loadd(0, &of_program, 64);
     }},
    // The assembler rejects these three: tiles 3, 3, 1, then 3, 2, 3, then 3, 2, 2.
    {"destination is first source", [] { asm volatile(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xdb"); }},
    {"destination is second source", [] { asm volatile(".byte 0xc4, 0xe2, 0x62, 0x5c, 0xda"); }},
    {"sources are the same", [] { asm volatile(".byte 0xc4, 0xe2, 0x6b, 0x5e, 0xda"); }},
    {"rows differ", [] { load_three(5, 64, 4, 64, 16, 64), execute(bf16ps); }},
    {"columns differ", [] { load_three(5, 64, 5, 64, 16, 60), execute(bsud); }},
    {"inner sizes differ", [] { load_three(5, 64, 5, 60, 16, 64), execute(busd); }},
    {"odd bytes", [] { load_three(5, 62, 5, 64, 16, 62), execute(buud); }},
};

// ---- Microseconds

int print_times() {
  load_three(16, 64, 16, 64, 16, 64);
  std::vector<uint8_t> memory(1024);
  const auto time = [&](const char* name, auto&& instruction) {
    constexpr int count = 20000;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < count; ++i) instruction();
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
    std::printf("%-20s %.2f\n", name, taken.count() / count);
  };
  time("TILELOADD", [&] { _tile_loadd(5, memory.data(), 64); });
  time("TILESTORED", [&] { _tile_stored(5, memory.data(), 64); });
  for (int i = 0; i < operations; ++i) time(names[i], [&] { execute(static_cast<Operation>(i)); });
  time("8 TDPBF16PS in a row", [] { asm volatile(".rept 8\n tdpbf16ps %tmm2, %tmm7, %tmm5\n .endr"); });
  _tile_release();
  return 0;
}

bool begin(const std::string& how) {
  if (how == "processor") return syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, of tile data
  void* library = dlopen(how.c_str(), RTLD_NOW);
  if (!library) std::fprintf(stderr, "%s\n", dlerror());
  return library && reinterpret_cast<int (*)()>(dlsym(library, "install_amx_emulator"))() == 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (!begin(arguments[1])) return 77;
  if (count > 2) {
    if (std::string(arguments[2]) == "time") return print_times();
    mistakes.at(arguments[2])();
    return 0;
  }
  bool all = prove_products();
  all &= prove_addresses();
  all &= prove_zeros();
  all &= prove_threads();
  return all ? 0 : 1;
}
