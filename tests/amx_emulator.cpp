// Executes Intel AMX instructions in software, so that tests run machine code that uses them on processors without AMX: a
// SIGILL handler decodes the instruction, executes it on the thread's tiles, and steps over it. Compiled for AVX2 (x86-64-v3)
// as a shared library; 64-bit Linux only. Instructions that a processor would refuse abort with the reason.

#include <immintrin.h>
#include <signal.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <type_traits>

namespace {

constexpr int tile_count = 8, row_count = 16, row_bytes = 64;

struct Config {  // the operand of LDTILECFG; the second halves of `colsb` and `rows` are reserved
  uint8_t palette, start_row, reserved[14];
  uint16_t colsb[2 * tile_count];
  uint8_t rows[2 * tile_count];
};
static_assert(sizeof(Config) == 64);

struct Tiles {
  alignas(64) uint8_t data[tile_count][row_count][row_bytes];
  Config config;
  std::atomic<bool> taken;
};

// A signal handler must not allocate, and a loaded library has few bytes of thread-local storage that need no allocation. So a
// thread takes tiles from this pool when it configures them, and returns them when it releases them.
constinit Tiles pool[256];
[[gnu::tls_model("initial-exec")]] constinit thread_local Tiles* mine = nullptr;

struct Instruction {
  int reg, rm, vvvv;  // the tiles, in the order of an operation's operands
  const char* name = nullptr;
  uint8_t* address = nullptr;
  int64_t stride = 0;
};

void require(bool held, const Instruction& in, const char* reason) {
  if (held) return;
  const char* texts[] = {"amx_emulator: ", in.name, ": ", reason, "\n"};
  iovec parts[5];
  for (int i = 0; i < 5; ++i) parts[i] = {const_cast<char*>(texts[i]), strlen(texts[i])};
  [[maybe_unused]] const auto written = writev(STDERR_FILENO, parts, 5);
  abort();
}

void release(const Instruction&) {
  if (mine) mine->taken.store(false, std::memory_order_release);
  mine = nullptr;
}

void load_config(const Instruction& in) {
  Config config;
  memcpy(&config, in.address, sizeof config);
  if (config.palette == 0) return release(in);
  require(config.palette == 1, in, "the palette is neither 0 nor 1");
  require(config.start_row == 0, in, "start_row is not 0, which is not emulated");
  for (const uint8_t byte : config.reserved) require(byte == 0, in, "a reserved byte is not 0");
  for (int t = 0; t < 2 * tile_count; ++t) {
    require(t < tile_count || (!config.rows[t] && !config.colsb[t]), in, "a reserved byte is not 0");
    require(config.rows[t] <= row_count, in, "a tile has more than 16 rows");
    require(config.colsb[t] <= row_bytes, in, "a tile has more than 64 bytes per row");
    require((config.rows[t] == 0) == (config.colsb[t] == 0), in, "a tile has rows without bytes or bytes without rows");
  }
  for (Tiles& tiles : pool) {
    if (mine) break;
    if (!tiles.taken.exchange(true, std::memory_order_acquire)) mine = &tiles;
  }
  require(mine, in, "256 threads have configured tiles and not released them");
  mine->config = config;
  memset(mine->data, 0, sizeof mine->data);
}

void store_config(const Instruction& in) {
  if (mine) memcpy(in.address, &mine->config, sizeof(Config));
  else memset(in.address, 0, sizeof(Config));
}

struct Tile {
  int rows, colsb;
  uint8_t (*row)[row_bytes];
};

Tile tile(const Instruction& in, int number) {
  require(mine, in, "tiles are not configured");
  require(mine->config.rows[number], in, "one of its tiles has no rows in the configuration");
  return {mine->config.rows[number], mine->config.colsb[number], mine->data[number]};
}

void zero(const Instruction& in) { memset(tile(in, in.reg).row, 0, sizeof mine->data[0]); }

void load(const Instruction& in) {
  const Tile to = tile(in, in.reg);
  memset(to.row, 0, sizeof mine->data[0]);
  for (int r = 0; r < to.rows; ++r) memcpy(to.row[r], in.address + r * in.stride, to.colsb);
}

void store(const Instruction& in) {
  const Tile from = tile(in, in.reg);
  for (int r = 0; r < from.rows; ++r) memcpy(in.address + r * in.stride, from.row[r], from.colsb);
}

// dst += a b, in dwords of two or four factors each: `step` adds the products of one dword of a, broadcast to all lanes, with
// the dwords of a row of b; `sum` adds the two accumulators of all steps to the row of dst.
template <class Accumulator, class Step, class Sum>
void multiply(const Instruction& in, Step step, Sum sum) {
  require(in.reg != in.rm && in.reg != in.vvvv && in.rm != in.vvvv, in, "two of its tiles are the same");
  const Tile dst = tile(in, in.reg), a = tile(in, in.rm), b = tile(in, in.vvvv);
  require(dst.colsb % 4 == 0 && a.colsb % 4 == 0 && b.colsb % 4 == 0, in, "bytes per row are no multiple of 4");
  require(dst.rows == a.rows, in, "destination and first source differ in rows");
  require(dst.colsb == b.colsb, in, "destination and second source differ in bytes per row");
  require(a.colsb == 4 * b.rows, in, "the first source's bytes per row are not 4 times the second source's rows");
  for (int m = 0; m < dst.rows; ++m) {
    for (int at = 0; at < row_bytes; at += sizeof(__m256i)) {
      const auto lanes = [at](uint8_t* row) { return reinterpret_cast<__m256i*>(row + at); };
      Accumulator sums[2] = {};
      for (int k = 0; k < b.rows; ++k) {
        int32_t factors;
        memcpy(&factors, &a.row[m][4 * k], sizeof factors);
        step(sums, _mm256_set1_epi32(factors), *lanes(b.row[k]));
      }
      *lanes(dst.row[m]) = sum(*lanes(dst.row[m]), sums);
    }
    memset(dst.row[m] + dst.colsb, 0, row_bytes - dst.colsb);
  }
  memset(dst.row[dst.rows], 0, (row_count - dst.rows) * row_bytes);
}

void tdpbf16ps(const Instruction& in) {
  const auto even = [](__m256i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); };
  const auto odd = [](__m256i v) { return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(-65536))); };
  multiply<__m256>(
      in,
      [&](__m256* sums, __m256i a, __m256i b) {
        sums[0] = _mm256_fmadd_ps(even(a), even(b), sums[0]);
        sums[1] = _mm256_fmadd_ps(odd(a), odd(b), sums[1]);
      },
      [](__m256i dst, const __m256* sums) {
        const __m256 both = _mm256_add_ps(sums[0], sums[1]);
        return _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(dst), both));
      });
}

template <bool a_signed, bool b_signed>
void tdpb(const Instruction& in) {
  const auto odd = []<bool is_signed>(__m256i v, std::bool_constant<is_signed>) {  // every second byte as 16 bits
    return is_signed ? _mm256_srai_epi16(v, 8) : _mm256_srli_epi16(v, 8);
  };
  multiply<__m256i>(
      in,
      [&](__m256i* sums, __m256i a, __m256i b) {
        for (int i = 0; i < 2; ++i, a = _mm256_slli_epi16(a, 8), b = _mm256_slli_epi16(b, 8)) {
          const auto wide_a = odd(a, std::bool_constant<a_signed>()), wide_b = odd(b, std::bool_constant<b_signed>());
          sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(wide_a, wide_b));
        }
      },
      [](__m256i dst, const __m256i* sums) { return _mm256_add_epi32(dst, _mm256_add_epi32(sums[0], sums[1])); });
}

enum class Form { alone, tile, tiles, memory, rows };

struct Encoding {
  const char* name;
  int opcode, prefix;
  Form form;
  void (*execute)(const Instruction&);
};

// All are VEX.128.0F38.W0, which only the three-byte VEX prefix (C4) can encode.
constexpr Encoding encodings[] = {
    {"LDTILECFG", 0x49, 0, Form::memory, load_config}, {"STTILECFG", 0x49, 1, Form::memory, store_config},
    {"TILERELEASE", 0x49, 0, Form::alone, release},    {"TILEZERO", 0x49, 3, Form::tile, zero},
    {"TILELOADD", 0x4b, 3, Form::rows, load},          {"TILELOADDT1", 0x4b, 1, Form::rows, load},
    {"TILESTORED", 0x4b, 2, Form::rows, store},        {"TDPBF16PS", 0x5c, 2, Form::tiles, tdpbf16ps},
    {"TDPBSSD", 0x5e, 3, Form::tiles, tdpb<1, 1>},     {"TDPBSUD", 0x5e, 2, Form::tiles, tdpb<1, 0>},
    {"TDPBUSD", 0x5e, 1, Form::tiles, tdpb<0, 1>},     {"TDPBUUD", 0x5e, 0, Form::tiles, tdpb<0, 0>},
};

constexpr int registers[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// If the instruction at `code` is one of the above, executes it and returns its end; else returns nullptr.
const uint8_t* execute(const uint8_t* code, const greg_t* values) {
  const bool thread_relative = *code == 0x64;
  code += thread_relative;
  if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) return nullptr;
  const int r = ~code[1] >> 7 & 1, x = ~code[1] >> 6 & 1, b = ~code[1] >> 5 & 1;  // the fourth bits of registers
  const int prefix = code[2] & 3, opcode = code[3], mod = code[4] >> 6;
  Instruction in{.reg = code[4] >> 3 & 7, .rm = code[4] & 7, .vvvv = ~code[2] >> 3 & 15};
  const auto fits = [&](Form form) {
    if (form == Form::tiles) return mod == 3 && !r && !b && in.vvvv < tile_count;
    if (in.vvvv != 0) return false;
    if (form == Form::alone) return code[4] == 0xc0;
    if (form == Form::tile) return mod == 3 && !r && in.rm == 0;
    return mod != 3 && (form == Form::rows ? !r && in.rm == 4 : in.reg == 0);
  };
  const Encoding* found = encodings;
  while (found->opcode != opcode || found->prefix != prefix || !fits(found->form))
    if (++found == std::end(encodings)) return nullptr;
  in.name = found->name;
  code += 5;
  if (mod != 3) {
    int64_t address = thread_relative ? reinterpret_cast<int64_t>(__builtin_thread_pointer()) : 0;
    int base = in.rm + 8 * b;
    if (in.rm == 4) {
      const int index = (*code >> 3 & 7) + 8 * x;
      if (index != 4) in.stride = values[registers[index]] << (*code >> 6);
      base = (*code++ & 7) + 8 * b;
    }
    const bool no_base = mod == 0 && base % 8 == 5;
    const int bytes = mod == 1 ? 1 : mod == 2 || no_base ? 4 : 0;
    int32_t displacement = mod == 1 ? static_cast<int8_t>(*code) : 0;
    if (bytes == 4) memcpy(&displacement, code, 4);
    code += bytes;
    if (!no_base) address += values[registers[base]];
    else if (in.rm == 5) address += reinterpret_cast<int64_t>(code);
    if (found->form == Form::memory) address += in.stride;
    in.address = reinterpret_cast<uint8_t*>(address + displacement);
  }
  found->execute(in);
  return code;
}

struct sigaction previous;

void on_illegal_instruction(int, siginfo_t* info, void* context) {
  greg_t* values = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const bool sent = info->si_code <= 0;  // by kill or raise: there is no instruction
  // AMX ignores MXCSR: it rounds to nearest even, treats subnormals as zeros and raises no exceptions. The return from the
  // signal restores MXCSR.
  _mm_setcsr(0x9fc0);
  bool executed = false;
  while (!sent) {  // one signal (some microseconds) for consecutive AMX instructions
    const uint8_t* end = execute(reinterpret_cast<const uint8_t*>(values[REG_RIP]), values);
    if (!end) break;
    values[REG_RIP] = reinterpret_cast<greg_t>(end);
    executed = true;
  }
  if (executed) return;
  sigaction(SIGILL, &previous, nullptr);
  if (sent) raise(SIGILL);  // otherwise the instruction faults again
}

}  // namespace

// Returns 0, or -1 with errno. The first signal that is not for the emulator restores the previous handler.
extern "C" int install_amx_emulator() {
  struct sigaction ours = {}, current;
  ours.sa_sigaction = on_illegal_instruction;
  ours.sa_flags = SA_SIGINFO;
  if (sigaction(SIGILL, &ours, &current) != 0) return -1;
  if (current.sa_sigaction != on_illegal_instruction) previous = current;
  return 0;
}
